"""One reader for each format of users' files: lines, JSON, tables, columns of words.

`prepare`, `finetune` and `score` read through them. Lines end at "\\n" alone, so U+2028, U+0085 and
their like are characters of a text.
"""
