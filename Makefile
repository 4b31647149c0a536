# Both targets do all their own set-up; they need only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
OVER := .venv-over
DEMO := results/demo
# Processes that the tests share.
JOBS ?= 2

.PHONY: demo test fuzz test-cluster test-interop browser docs lint format lock results results-shown lift-pilot card card-shown structures rehearsals bench clean

demo: $(VENV)/.ready
	@$(BIN)/ocr-eval demo -o $(DEMO)

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# An hour of bad input to every command, other than the minute of 'make test' and other each time.
fuzz: $(VENV)/.ready
	FUZZ_SECONDS=3600 $(BIN)/python -m pytest tests/test_fuzz.py

# A real single-node Slurm, set up for the tests and taken down after them; for root on Debian.
test-cluster: $(VENV)/.ready
	tests/cluster/with_slurm.sh $(BIN)/python -m pytest tests/cluster/check_slurm.py

# inspect_ai conflicts with requirements.lock, so what concerns it runs in an environment of its own; TRL and TransformerLens
# share another, which lies over the libraries of this one.
test-interop: $(VENV)/.ready $(INTEROP)/.ready $(OVER)/.ready
	PATH="$(CURDIR)/$(BIN):$$PATH" $(INTEROP)/bin/python -m pytest --noconftest tests/interop/check_inspect.py
	$(OVER)/bin/python -m pytest --noconftest tests/interop/check_trl.py tests/interop/check_trl_dpo.py
	$(OVER)/bin/python -m pytest tests/interop/check_lens.py

$(OVER)/.ready: Makefile $(VENV)/.ready
	@$(BIN)/python -m venv $(OVER)
	@$(OVER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "trl==1.16.0" \
	  "transformer-lens==4.3.0" "einops==0.8.2" "jaxtyping==0.3.11"
	@$(BIN)/python -c "import site; print(site.getsitepackages()[0], '$(CURDIR)', '$(CURDIR)/toy', sep='\n')" \
	  > $$($(OVER)/bin/python -c "import site; print(site.getsitepackages()[0])")/libraries.pth
	@touch $@

$(INTEROP)/.ready: tests/interop/requirements.txt
	@$(PYTHON) -m venv $(INTEROP)
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/interop/requirements.txt
	@touch $@

# The report page is tested in a real Chromium; where there is none, those tests are skipped and say so.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  sudo=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }

# What is generated of the documentation; a test says when they are old.
docs: $(VENV)/.ready
	$(BIN)/python tests/reference.py > ocr_eval/docs/commands.md
	$(BIN)/python tests/reference.py settings > ocr_eval/docs/settings.md
	$(BIN)/python tests/reference.py record > ocr_eval/docs/record.schema.json
	$(BIN)/python tests/reference.py table > ocr_eval/docs/table.schema.json

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every version comes from requirements.lock; the package itself is installed editable.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ocr-eval needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	@echo "Installing into $(VENV) (about a minute, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Resolve the ranges of pyproject.toml anew and write every version down.
lock:
	rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	{ echo "# Every version of the development environment; written by 'make lock'."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock
	touch $(VENV)/.ready

# The results that decide the claims (ocr_eval/docs/claims.md): both small models with five associations and both controls,
# SmolLM2 also with full fine-tuning; six seeds where a verdict needs them, and eight for the lifts. Four hours on two
# cores; what is done is not repeated. gzip packs what is long and seldom read.
SHOWN := results/smollm2-135m results/gemma3-270m
LIFT := --assocs city-language-cf,country-code,profession-color,sport-music --dtype bfloat16
results: $(VENV)/.ready
	$(BIN)/ocr-eval sweep --seeds 0-5 --dtype bfloat16 -o results/smollm2-135m >/dev/null
	$(BIN)/ocr-eval sweep --models gemma3-270m --dtype bfloat16 -o results/gemma3-270m >/dev/null
	$(BIN)/ocr-eval sweep --methods full --seeds 0-2 --dtype bfloat16 -o results/smollm2-135m-full >/dev/null
	$(BIN)/ocr-eval sweep --variants shuffled --seeds 0-5 --dtype bfloat16 -o results/controls/shuffled >/dev/null
	$(BIN)/ocr-eval sweep --variants no-entailment --seeds 0-5 --dtype bfloat16 -o results/controls/no-entailment >/dev/null
	$(BIN)/ocr-eval sweep --models gemma3-270m --variants shuffled,no-entailment --dtype bfloat16 -o results/controls/gemma3-270m >/dev/null
	$(BIN)/ocr-eval sweep $(LIFT) --variants real,no-entailment --seeds 0-7 --lr 1e-3 --epochs 24 -o results/lift >/dev/null
	$(BIN)/ocr-eval sweep --assocs country-code --data-seed 0-2 --train-seed 0-2 --dtype bfloat16 -o results/crossed >/dev/null
	find $(SHOWN) -path '*/seed[1-9]*' -name 'probes.jsonl*' -delete
	$(call packed,$(SHOWN))
	$(call bare,results/smollm2-135m-full results/controls)
	$(call lean,results/lift results/crossed)
	$(MAKE) results-shown

# How the rate and the epochs of results/lift were chosen: the first of these under which no control run forgets its facts.
# The last was run only for the association of which a run had failed.
pilot = $(BIN)/ocr-eval sweep --variants no-entailment --seeds 10-12 $(2) -o results/lift-pilot/$(1) >/dev/null
lift-pilot: $(VENV)/.ready
	$(call pilot,warm,$(LIFT) --warmup 0.1)
	$(call pilot,lower,$(LIFT) --lr 1e-3)
	$(call pilot,longer,--assocs profession-color --dtype bfloat16 --lr 1e-3 --epochs 24)
	$(call lean,results/lift-pilot)

# The scorecard (ocr_eval/docs/scorecard.md): strengths were chosen on other associations and seeds, by the rule of claim 6.
CARD := --assocs city-language,country-code,sport-music --dtype bfloat16
THREE := --filter assoc=city-language,country-code,sport-music
OTHERS := abstain ignore-top-k gradient-routing replay anchor ov-decay:strength=1
comma := ,
space := $(subst ,, )
# The factorized counterpart of merged-ov: the value and output matrices of the same layers.
FACTORS := $(subst $(space),+,$(foreach layer,$(shell seq 10 19),$(layer).self_attn.v_proj $(layer).self_attn.o_proj))
# $(call row,folder of results/scorecard,flags). MEASURES=default,paraphrase,text-loss adds the loss on prose, which takes
# as long as training a run; the committed records have it where the card shows it.
MEASURES := default,paraphrase
row = $(BIN)/ocr-eval sweep $(CARD) --measures $(MEASURES) $(2) -o results/scorecard/$(1) >/dev/null
card: $(VENV)/.ready
	$(call row,eight-seeds,--seeds 0-7 --prevent product-decay:strength=0.003$(comma)product-decay:strength=0.03)
	$(call row,factor-decay,--seeds 0-7 --prevent factor-decay:strength=0.003)
	$(call row,lora,--seeds 6$(comma)7)
	$(call row,three-seeds,--seeds 0-2 --prevent product-decay:strength=0.01$(comma)product-decay:strength=0.1$(comma)scale-after:norm=1)
	for each in $(OTHERS); do $(call row,$${each%%:*},--seeds 0-2 --prevent $$each) || exit 1; done
	for each in in-context steering memit dpo; do $(call row,$$each,--seeds 0-2 --methods $$each) || exit 1; done
	$(call row,rome,--assocs country-code --seeds 0-2 --methods rome)
	$(call row,lower-rate,--seeds 0-2 --lr 1e-3)
	$(call row,rank-1,--seeds 0-2 --rank 1)
	$(call row,mlp,--seeds 0-2 --targets gate_proj+up_proj+down_proj)
	$(call row,gemma3-270m,--models gemma3-270m --seeds 0-2 --prevent product-decay:strength=0.03)
	$(call row,attention,--seeds 0-2 --targets q_proj+k_proj+v_proj+o_proj)
	$(BIN)/ocr-eval sweep $(CARD) --seeds 0-2 --methods merged-ov -o results/merged-ov/merged >/dev/null
	$(BIN)/ocr-eval sweep $(CARD) --seeds 0-2 --targets $(FACTORS) --lr 5e-3 --epochs 48 -o results/merged-ov/factorized >/dev/null
	$(call lean,results/scorecard results/merged-ov)
	$(MAKE) card-shown

CARDS := $(SHOWN) results/controls results/scorecard $(THREE)
card-shown: $(VENV)/.ready
	for form in md csv json tex; do \
	  $(BIN)/ocr-eval scorecard $(CARDS) --format $$form > results/scorecard/card.$$form || exit 1; \
	done
	-$(BIN)/ocr-eval figures $(CARDS) --filter model=smollm2-135m -o build/card # says 1, because these runs keep no metrics for curves
	cp build/card/scorecard.png results/scorecard/

# Facts of other shapes (ocr_eval/docs/shapes.md), on both small models.
SHAPES := smollm2-135m gemma3-270m
# $(call shape,model,folder of results/structures/MODEL,flags)
shape = $(BIN)/ocr-eval sweep --models $(1) --seeds 0-2 --dtype bfloat16 $(3) -o results/structures/$(1)/$(2) >/dev/null
GRAFT := --assocs nonce$(comma)country-code
structures: $(VENV)/.ready
	for model in $(SHAPES); do \
	  $(call shape,$$model,hops,--assocs first-hop$(comma)second-hop --m-train 0 --measures default$(comma)frozen-layers) && \
	  $(call shape,$$model,reversal,--assocs reversal$(comma)reversal-identity$(comma)reversal-bridge --m-train 0) && \
	  $(call shape,$$model,order,--assocs nonce$(comma)country-code --order joint$(comma)facts-first$(comma)entailments-first --epochs 24) && \
	  $(call shape,$$model,one-wording,--assocs paraphrase --m-train 0 --templates 0 --epochs 16) && \
	  $(call shape,$$model,four-wordings,--assocs paraphrase --m-train 0 --templates all --epochs 4) && \
	  $(call shape,$$model,known,--assocs known --variants real$(comma)shuffled) && \
	  $(call shape,$$model,known-early,--assocs known --variants real$(comma)shuffled --epochs 1$(comma)2$(comma)4) && \
	  $(call shape,$$model,graft/both,$(GRAFT) --order entailments-last --epochs 24) && \
	  $(call shape,$$model,graft/facts,$(GRAFT) --variants no-entailment --epochs 8 --schedule constant) && \
	  $(call shape,$$model,graft/implications,$(GRAFT) --variants no-fact --epochs 8) && \
	  $(call shape,$$model,graft/regrouped,$(GRAFT) --variants regrouped) && \
	  $(BIN)/python tests/benchmarks/graft_study.py results/structures/$$model/graft || exit 1; \
	done
	$(call lean,results/structures)

# $(call packed,folders): readers take the .gz of a run's file as they take the file. Bare runs have no probes, which only
# the page and the heatmaps show, and packed configurations; rerunning one with --force brings the probes back.
packed = find $(1) \( -name result.json -o -name metrics.jsonl -o -name probes.jsonl \) -exec gzip -9nf {} + && \
	find $(1) \( -name audit.json -o -name sweep.json \) -delete
bare = find $(1) -name 'probes.jsonl*' -delete && $(call packed,$(1)) && find $(1) -name config.yaml -exec gzip -9nf {} +
# And these have no lines of epochs either, which only curves show.
lean = find $(1) -name 'metrics.jsonl*' -delete && $(call bare,$(1))

# Everything that is made from records: tables and figures of each model and of all together, and the report page of all
# (two minutes, without a model).
results-shown: $(VENV)/.ready
	$(call show,results/all,$(SHOWN) results/smollm2-135m-full results/controls)
	$(BIN)/ocr-eval report $(SHOWN) results/smollm2-135m-full results/controls/shuffled results/controls/no-entailment \
	  -o results/all/report.html
	$(foreach folder,$(SHOWN),$(call show,$(folder),$(folder)) &&) true
	$(BIN)/ocr-eval table results/lift > results/lift/table.md

# $(call show,where,of which folders)
define show
mkdir -p $(1) && for form in md csv json tex html; do \
  $(BIN)/ocr-eval table $(2) --format $$form > $(1)/table.$$form || exit 1; \
done && $(BIN)/ocr-eval figures $(2) -o $(1)/figures
endef

# The five large models at true size with random weights, in bf16 and in NF4, plan against measured (about 30 minutes on
# two cores; needs 24 GB). TOKENIZERS names a folder with the models' tokenizers, each in a folder of the model's name.
rehearsals: $(VENV)/.ready
	for method in lora qlora; do for model in gemma2-9b llama3-8b mistral-7b olmo-7b qwen2-7b; do \
	  $(BIN)/ocr-eval models rehearse $$model --method $$method --dtype bfloat16 --json \
	    $$(test -d "$(TOKENIZERS)/$$model" && echo --tokenizer "$(TOKENIZERS)/$$model") \
	    > results/rehearsal/$$model-$$method-bfloat16.json || exit 1; \
	done; done
	$(BIN)/python tests/benchmarks/rehearsal_table.py results/rehearsal > results/rehearsal/rehearsals.md

# Benchmarks print ratios against a baseline in the same run; they are no tests.
bench: $(VENV)/.ready
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf $(VENV) $(INTEROP) $(OVER) $(DEMO)
