"""Files: what a path means, and text in the encodings and compressions that files come in."""

import bz2
import gzip
import lzma
import os
import sys

import pytest

from lm.data.files import find_files, read_lines
from lm.errors import UserError

TEXT = "naïve\n日本\u2028語\r\nthree\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, name, data=b"x"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def error_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        list(call(*arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_exists_is_meant_literally(folder):
    literal = write(folder, "[ab]/c*[0].txt")
    write(folder, "a/c0.txt")
    write(folder, "a/c10.txt")
    assert find_files("", str(literal)) == [literal]
    assert find_files("", f"{folder}/[ab]/*.txt") == [literal]
    assert find_files("", "[ab]/**/*.txt") == [literal.relative_to(folder)]
    assert [file.name for file in find_files("", "[a]/c[0-9].txt")] == ["c0.txt"]


def test_home_and_variables(folder, monkeypatch):
    file = write(folder, "home/x[1]/a.txt")
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("MY_DATA", str(folder / "home"))
    assert find_files("", "~/x[1]/*.txt") == find_files("", "$MY_DATA/x[1]/a.txt") == [file]
    literal = write(folder, "~/$MY_DATA.txt")
    assert find_files("", str(literal)) == [literal]


def test_no_file_is_explained(folder):
    (folder / "sub").mkdir()
    assert "text:sub is a folder: name the files in it, as in sub/**/*.txt" in error_of(find_files, "text:sub", "sub")
    assert "matches no file" in error_of(find_files, "text:*.md", "*.md")
    assert "matches no file" in error_of(find_files, "text:x", "x\0")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(folder, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file = write(folder, "a.txt", (mark + TEXT).encode(encoding))
    assert list(read_lines(file)) == ["naïve\n", "日本\u2028語\r\n", "three\n"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files(folder, suffix, compress):
    data = compress(TEXT.encode())
    for name in (f"a.txt{suffix}", "a.txt"):
        assert "".join(read_lines(write(folder, name, data))) == TEXT
        assert "cannot read" in error_of(read_lines, write(folder, name, data[:-6]))
    assert "".join(read_lines(write(folder, f"b{suffix}", compress("x\n".encode("utf-16"))))) == "x\n"
    assert f"cannot read plain{suffix}" in error_of(read_lines, write(folder, f"plain{suffix}").relative_to(folder))


def test_zstd(folder):
    zstd = pytest.importorskip("backports.zstd")
    data = zstd.compress(TEXT.encode())
    assert "".join(read_lines(write(folder, "a.zst", data))) == TEXT
    assert "cannot read" in error_of(read_lines, write(folder, "b.zst", data[:-4]))


def test_without_zstd_the_message_names_it(folder, monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "a.zst: pip install backports.zstd to read zstd files" in error_of(read_lines, write(folder, "a.zst"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"fine\nna\xefve", "is not UTF-8 at byte 7: convert it to UTF-8"),
        (b"\xff\xfea\x00\n\x00\x00\xd8x\x00", "has UTF-16's mark but is not UTF-16"),
        (b"\xff\xfea\x00\n", "has UTF-16's mark but is not UTF-16"),
        ("text,label\nx,1\n".encode("utf-16-le"), "seems to be UTF-16 without a byte-order mark"),
        ("text,label\nx,1\n".encode("utf-16-be"), "seems to be UTF-16 without a byte-order mark"),
        (b"PK\x03\x04....", "is a zip archive or a spreadsheet: unpack it, or export it as CSV"),
    ],
)
def test_what_cannot_be_decoded_is_named(folder, data, words):
    message = error_of(read_lines, write(folder, "a.txt", data))
    assert message.startswith(f"{folder}/a.txt ")
    assert words in message


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_named(folder):
    file = write(folder, "a.txt")
    file.chmod(0)
    assert "cannot read" in error_of(read_lines, file)


def test_the_empty_file_has_no_lines(folder):
    assert list(read_lines(write(folder, "a.txt", b""))) == []
    assert list(read_lines(write(folder, "a.txt", b"\xef\xbb\xbf"))) == [""]
