"""Hashes: of equal content they are equal, and whatever differs counts."""

import torch
from torch import nn

from dmvae.runtime.hashing import bytes_hash, content_hash, digest, weights_hash


def test_where_a_part_ends_counts():
    assert digest(1, 2) == digest(1, 2) != digest(12)
    assert bytes_hash([b"ab", b"c"]) != bytes_hash([b"a", b"bc"])
    assert bytes_hash(iter([b"ab", b"c"])) == bytes_hash([b"ab", b"c"])


def test_tensors_count_by_their_type_shape_and_content():
    x = torch.zeros(2, 3)
    others = (x, x.T.contiguous(), x.int(), x.double(), x + 1)
    assert len({digest(y) for y in others}) == len(others)
    assert digest(torch.ones(3, 2).T) == digest(torch.ones(2, 3)), "not by how they lie in memory"


def test_files_count_by_name_and_content_and_folders_by_what_lies_where(tmp_path):
    for place in ("a/x", "a/deep/y", "b/x", "b/y"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place[-1])
    a, b, none = (tmp_path / name for name in ("a", "b", "none"))
    found = [content_hash(paths) for paths in ([a], [b], [a / "x"], [a / "deep/y"], [none], [])]
    assert len(set(found)) == len(found)
    assert content_hash([a / "x"]) == content_hash([b / "x"]), "the folder that a file lies in does not count"
    (b / "x").write_text("other")
    (a / "deep").rename(a / "other")
    assert content_hash([a]) != found[0]
    assert content_hash([b]) != found[1]


def test_weights_count_by_name_and_value():
    networks = [nn.Linear(2, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    assert weights_hash(networks[0]) == weights_hash(networks[1]) != weights_hash(nn.Sequential(networks[0]))
    with torch.no_grad():
        networks[1].bias[0] += 1
    assert weights_hash(networks[0]) != weights_hash(networks[1])
