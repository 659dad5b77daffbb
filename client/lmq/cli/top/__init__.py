"""`lmq top`: a screen that people leave open. `model` and `draw` are pure; `command` moves things between them."""
