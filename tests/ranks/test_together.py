"""What rank 0 does is everybody's, whichever group it is rank 0 of."""

import pytest

from pipeline.ranks.together import together

WORLD = 3


def outcomes() -> dict:
    """By case what this rank got, and the ranks that have acted by then, as this one knows them."""
    import torch.distributed as dist

    from pipeline.training.engine import start_process_group

    rank, _, _ = start_process_group(60)
    others = dist.new_group([1, 2])  # whose rank 0 is rank 1
    found, acted = {}, []

    def case(name, action, group=None):
        acted.clear()
        try:
            result = together(lambda: acted.append(rank) or action(), group)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        found[name] = result, acted.copy()

    def fail():
        raise ValueError(f"rank {rank} cannot")

    case("a value", lambda: {"from": rank})
    case("an error", fail)
    if rank:
        case("a value in a group", lambda: {"from": rank}, others)
        case("an error in a group", fail, others)
    case("afterwards", lambda: rank)
    return found


@pytest.fixture(scope="module")
def ranks(run_ranks):
    return run_ranks("tests.ranks.test_together:outcomes", WORLD)


@pytest.mark.parametrize(
    "case, first, result",
    [
        ("a value", 0, {"from": 0}),
        ("an error", 0, "ValueError: rank 0 cannot"),
        ("a value in a group", 1, {"from": 1}),
        ("an error in a group", 1, "ValueError: rank 1 cannot"),
        ("afterwards", 0, 0),
    ],
)
def test_the_outcome_of_the_groups_rank_0_is_everybodys(ranks, case, first, result):
    for rank in range(first, WORLD):
        assert ranks[rank][case] == (result, [rank] if rank == first else []), rank


def test_a_process_on_its_own_acts_itself():
    value = object()
    assert together(lambda: value) is value
    with pytest.raises(ValueError, match="no room"):
        together(lambda: (_ for _ in ()).throw(ValueError("no room")))
