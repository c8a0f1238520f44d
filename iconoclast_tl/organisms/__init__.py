"""Tiny models with a planted, known behaviour: they refuse one family of invented topics.

A model organism makes every claim of the toolkit checkable. What it does was put there by `training`, the grammar
(`grammar`) says of any response whether it is an answer, a refusal or neither, and the capability to answer the
refused topics was taught *before* the refusal, so that an edit which takes the refusal away has a real answer to let
through.

Files: `grammar` (requests, topics, `judge`), `contrast` (the prompt sets), `tokenizer`, `config`, `phases` (what each
phase of training teaches), `training`, `folder` (saving, loading, the shipped organism), `behaviour` (its measured
rates).
"""
