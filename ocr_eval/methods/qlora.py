"""``qlora``: LoRA over a base whose linear layers are stored in 4 bits (Dettmers et al., arXiv 2305.14314)."""

from ocr_eval.methods.lora import Lora
from ocr_eval.methods.method import Needs


class QLora(Lora):
    """Like LoRA, but the base computes from NF4 weights."""

    label = "QLoRA"
    about = "LoRA over a 4-bit base, NF4 (Dettmers et al., arXiv 2305.14314)"
    needs = Needs(quantized=True)
    lighter = ()
