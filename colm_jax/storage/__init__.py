"""Files on disk and in Cloud Storage: one interface to read and write both; a file appears when it is complete."""
# ruff: noqa: F401 - the names below are the public interface

from colm_jax.storage.disk import kind_of
from colm_jax.storage.files import (
    GrowingFile,
    absolute,
    check_regular,
    check_writable,
    checksums,
    copy_file,
    damaged_is_one_line,
    entries,
    files_below,
    in_bucket,
    load_array,
    local_copies,
    local_copy,
    locked,
    make_directory,
    modified,
    path_of,
    publish,
    read_range,
    remove_tree,
    replacing,
    replacing_directory,
    save_array,
    sha256_of,
    size_of,
    storage_of,
    working_directory,
    write_json,
    write_text,
)
from colm_jax.storage.sources import convert_once, shown, source_files
from colm_jax.storage.text import (
    check_unicode,
    decode_lines,
    parse_json,
    read_json,
    read_lines,
    read_text,
    without_mark,
)
