"""GGUF, the file format of llama.cpp: a file becomes a model directory whose weights stay in the file.

`header.py` reads and checks a file, `config.py` and `tokenizer.py` convert its metadata, `names.py` and `tensors.py`
its tensors, `directory.py` puts them together. Nothing here needs JAX.
"""
