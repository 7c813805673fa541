"""What can be set: each setting declared once, with its type, default, help and allowed values.

Plain frozen dataclasses that any module may import and that import none but `errors` and `checks`. Flags, gin bindings,
`colm config` and the tables of the docs are made from them.
"""
