"""
A pair for each release: `NNNN_pre`, `NNNN_post`.

The operations of the post migrations before the last one are emptied when a pair is added: a project that skips a
release may not remove what the workers of its old one still need before it has asked for the last stage.
"""
