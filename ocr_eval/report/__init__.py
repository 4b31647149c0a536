"""Presenting findings: tables as text, charts, figures, the HTML page.

In: findings and run files. Out: text, figures, pages. Imports: analysis and below.
"""
