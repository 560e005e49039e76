"""Copies of states: where they are taken, which give way, and that nothing is lost without them but time."""

from tests.schedule.simulated_device import World


def starts(world: World, name: str) -> list[tuple[int, int]]:
    """(start, end) of every chunk of a request, from now to its end."""
    chunks = []
    while not world.is_finished(name):
        plan = world.step()
        for chunk in plan.chunks if plan is not None else ():
            if chunk.sequence.request.request_id == name:
                chunks.append((chunk.start, chunk.start + chunk.length))
    return chunks


PROMPT = [1, 2, 3] * 5
"""Seven pages of 2 tokens, and one token more."""


def test_a_prompt_is_cut_at_the_end_of_its_last_full_page() -> None:
    world = World(num_snapshots=4)
    world.add("a", PROMPT, max_tokens=1)
    assert starts(world, "a")[:2] == [(0, 14), (14, 15)]
    world.add("b", PROMPT, max_tokens=1)
    assert starts(world, "b")[:1] == [(14, 15)]
    world.check_outcome()


def test_who_branches_off_second_finds_what_the_first_left_there() -> None:
    world = World(num_snapshots=8)
    for name, tail in (("first", [1, 1, 1]), ("second", [2, 2, 2]), ("third", [3, 3, 3])):
        world.add(name, [*PROMPT[:10], *tail], max_tokens=1)
        chunks = starts(world, name)
        if name == "second":
            assert chunks[:3] == [(0, 10), (10, 12), (12, 13)]
        assert (chunks[0][0] == 10) == (name == "third")
    world.check_outcome()


def test_an_answer_leaves_one_copy_behind_that_of_its_prompt() -> None:
    world = World(num_snapshots=8)
    world.add("a", PROMPT, max_tokens=9, ignore_eos=True)
    world.run()
    said = [*PROMPT, *world.tokens("a")]
    used = world.scheduler._snapshots
    assert used is not None
    assert len(used._used) == 2
    world.add("next turn", [*said, 1, 2], max_tokens=1)
    assert starts(world, "next turn")[0][0] == 22
    world.check_outcome()


def test_the_least_recently_used_copy_gives_way() -> None:
    world = World(num_snapshots=2)
    prompts = {name: [number, *PROMPT[:8]] for number, name in enumerate("abc", 1)}
    for name in ("a", "b"):
        world.add(name, prompts[name], max_tokens=1)
        world.run()
    world.add("a again", prompts["a"], max_tokens=1)
    assert starts(world, "a again")[0][0] == 8
    world.add("c", prompts["c"], max_tokens=1)
    world.run()
    world.add("a once more", prompts["a"], max_tokens=1)
    assert starts(world, "a once more")[0][0] == 8
    world.add("b again", prompts["b"], max_tokens=1)
    assert starts(world, "b again")[0][0] == 0
    world.check_outcome()


def test_without_copies_nothing_is_found_and_no_prompt_is_cut() -> None:
    world = World(num_snapshots=0)
    for name in ("a", "b"):
        world.add(name, PROMPT, max_tokens=1)
        assert starts(world, name)[:1] == [(0, 15)]
    world.check_outcome()
