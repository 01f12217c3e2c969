import errno
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapray import storage
from leapray.errors import UserError
from leapray.training import checkpoint

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def tensors():
    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(
        lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(100).to(dtype),
        shapes,
        st.sampled_from(DTYPES),
        st.integers(0, 9),
    )


KEYS = st.one_of(st.text(max_size=4), st.sampled_from(["$tensor", "$items", "a/b", "a.b"]), st.integers(), st.booleans(), st.none())
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), tensors())
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
        ),
        max_leaves=10,
    ),
    max_size=4,
)


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).tolist() if tensor.numel() else []


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return a == b


@given(STATES)
def test_any_nested_state_comes_back_bit_for_bit(tmp_path_factory, state):
    url = str(tmp_path_factory.mktemp("state"))
    checkpoint.save(url, state)
    assert same(checkpoint.load(url), state)


def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path):
    def steps(network, optimizer, count):
        for step in range(count):
            optimizer.zero_grad()
            network(torch.full((3, 4), step + 1.0)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    steps(network, optimizer, 3)
    checkpoint.save(str(tmp_path), {"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    steps(network, optimizer, 3)

    other = torch.nn.Linear(4, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    state = checkpoint.load(str(tmp_path))
    other.load_state_dict(state["network"])
    other_optimizer.load_state_dict(state["optimizer"])
    steps(other, other_optimizer, 3)
    assert torch.equal(other.weight, network.weight)
    assert same(other_optimizer.state_dict(), optimizer.state_dict())


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    checkpoint.save(str(tmp_path), {"whole": whole, "again": whole, "column": whole[:, 1], "turned": whole.T})
    state = checkpoint.load(str(tmp_path))
    state["again"].zero_()
    assert torch.equal(state["whole"], whole)
    assert torch.equal(state["column"], whole[:, 1])
    assert torch.equal(state["turned"], whole.T)


def test_refuses_what_it_could_not_give_back(tmp_path):
    with pytest.raises(TypeError, match=r"loop\.when.*set"):
        checkpoint.save(str(tmp_path), {"loop": {"when": {1, 2}}})
    assert checkpoint.complete(str(tmp_path)) == []


def test_only_complete_checkpoints_count_and_the_newest_are_kept(tmp_path):
    folder = str(tmp_path / "checkpoints")
    assert checkpoint.complete(folder) == []
    urls = [checkpoint.step_url(folder, step) for step in (1, 2, 9, 10)]
    for url in urls:
        checkpoint.save(url, {"a": torch.ones(1)})
    storage.remove(storage.join(urls[-1], checkpoint.STATE))
    # somebody's copies, which come after all others by name
    for name in ("step-000000009 (copy)", "the best"):
        checkpoint.save(storage.join(folder, name), {"a": torch.ones(1)})
    assert checkpoint.complete(folder) == urls[:3]
    checkpoint.prune(folder, 2)
    assert checkpoint.complete(folder) == urls[1:3]
    assert not storage.exists(urls[0])


def test_names_a_damaged_checkpoint(tmp_path):
    url = str(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load(url)
    checkpoint.save(url, {"a": torch.ones(100)})
    tensors_file = tmp_path / checkpoint.TENSORS
    tensors_file.write_bytes(tensors_file.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{url}: damaged checkpoint"):
        checkpoint.load(url)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch, failing):
    folder = str(tmp_path)
    checkpoint.save(checkpoint.step_url(folder, 4), {"weights": torch.ones(3)})
    written = []

    def write(url, content, write=storage.write_bytes):
        written.append(url)
        if len(written) > failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(url, content)

    with monkeypatch.context() as patch:
        for place in (storage, storage.writing):
            patch.setattr(place, "write_bytes", write)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(checkpoint.step_url(folder, 4, validations=1), {"weights": torch.zeros(3)})
    (left,) = checkpoint.complete(folder)
    assert torch.equal(checkpoint.load(left)["weights"], torch.ones(3))


def test_names_of_checkpoints_follow_steps_and_validations():
    places = [(4, 0), (4, 1), (12, 1), (12, 12), (1_000_000, 12)]
    urls = [checkpoint.step_url("run", *place) for place in places]
    assert urls == sorted(urls)
    assert [checkpoint.steps_of(url) for url in urls] == [step for step, _ in places]
