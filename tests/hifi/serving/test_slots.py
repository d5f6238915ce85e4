"""hifi.serving.slots: tensors in one, and memory that is used again."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from hifi.serving.slots import Layout, Slots

CPU = torch.device("cpu")
SHAPES = {"weight": (3, 5), "bias": (5,), "scalar": (), "other": (2, 8)}


def layout_of(dtype: torch.dtype = torch.float32) -> Layout:
    return Layout.of(SHAPES, dtype=dtype)


def flat_of(layout: Layout, *, value: float = 0.0) -> torch.Tensor:
    return torch.full((layout.size,), value, dtype=layout.dtype)


class TestLayout:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_parts_begin_at_multiples_of_64_bytes_and_do_not_overlap(self, dtype: torch.dtype):
        layout = layout_of(dtype)
        flat = torch.zeros(layout.size, dtype=dtype)
        parts = layout.split(flat)
        assert {name: tuple(part.shape) for name, part in parts.items()} == SHAPES
        for number, part in enumerate(parts.values(), start=1):
            assert (part.data_ptr() - flat.data_ptr()) % 64 == 0
            part.fill_(number)
        assert [int(part.sum()) for part in parts.values()] == [15, 2 * 5, 3, 4 * 16]
        assert flat.sum() == 15 + 10 + 3 + 64

    def test_takes_the_parts_bytes_and_their_padding(self):
        # 15, 5, 1 and 16 float32 numbers take one line of 64 bytes each
        assert (layout_of().size, layout_of().nbytes) == (64, 256)
        # 15, 5, 1 and 16 bfloat16 numbers too, though a line holds 32 of them
        assert (layout_of(torch.bfloat16).size, layout_of(torch.bfloat16).nbytes) == (128, 256)
        assert Layout.of({}, dtype=torch.float32).nbytes == 0

    def test_is_equal_to_one_of_the_same_names_and_shapes(self):
        assert layout_of() == layout_of()
        assert hash(layout_of()) == hash(layout_of())
        assert layout_of() != layout_of(torch.bfloat16)
        assert layout_of() != Layout.of({**SHAPES, "bias": (6,)}, dtype=torch.float32)
        renamed = {"a" if name == "bias" else name: shape for name, shape in SHAPES.items()}
        assert layout_of() != Layout.of(renamed, dtype=torch.float32)


class TestSlots:
    def test_a_released_slot_serves_the_next_of_its_layout(self):
        slots, layout = Slots(CPU), layout_of()
        first = slots.fill(flat_of(layout, value=1), layout=layout)
        parts = dict(first.parts)
        slots.let_go(first)
        second = slots.fill(flat_of(layout, value=2), layout=layout_of())
        assert second.flat.data_ptr() == first.flat.data_ptr()
        assert all(second.parts[name] is part for name, part in parts.items())
        assert (second.flat == 2).all()
        assert slots.nbytes == layout.nbytes

    def test_one_that_is_held_is_not_overwritten(self):
        slots, layout = Slots(CPU), layout_of()
        slot = slots.fill(flat_of(layout, value=1), layout=layout)
        slots.hold(slot)
        slots.let_go(slot)
        assert not slots.has_free(layout)
        other = slots.fill(flat_of(layout, value=2), layout=layout)
        assert other is not slot
        assert (slot.flat == 1).all()
        slots.let_go(slot)
        assert slots.has_free(layout)

    def test_other_layouts_get_slots_of_their_own(self):
        slots, layout = Slots(CPU), layout_of()
        narrow = layout_of(torch.bfloat16)
        assert narrow.nbytes == layout.nbytes
        slots.let_go(slots.fill(flat_of(layout), layout=layout))
        assert not slots.has_free(narrow)
        slots.fill(flat_of(narrow), layout=narrow)
        assert slots.has_free(layout)
        assert slots.nbytes == layout.nbytes + narrow.nbytes

    def test_give_back_the_memory_of_free_ones_alone(self):
        slots, layout = Slots(CPU), layout_of()
        held, free = (slots.fill(flat_of(layout, value=1), layout=layout) for _ in range(2))
        slots.let_go(free)
        slots.release_free()
        assert not slots.has_free(layout)
        assert slots.nbytes == layout.nbytes
        assert (held.flat == 1).all()

    def test_are_counted_whatever_comes_and_goes(self):
        slots, held, free = Slots(CPU), [], []
        layouts = [layout_of(), Layout.of({"one": (100, 3)}, dtype=torch.float64)]
        draw = random.Random(0)  # noqa: S311 - a draw, not a secret
        for _ in range(500):
            step = draw.randrange(8)
            if step < 4:
                layout = draw.choice(layouts)
                if layout in free:
                    free.remove(layout)
                held.append(slots.fill(flat_of(layout), layout=layout))
            elif step < 7 and held:
                slot = held.pop(draw.randrange(len(held)))
                free.append(slot.layout)
                slots.hold(slot)
                slots.let_go(slot)
                slots.let_go(slot)
            elif step == 7:
                slots.release_free()
                free = []
            there = [slot.layout for slot in held] + free
            assert slots.nbytes == sum(layout.nbytes for layout in there)

    def test_are_counted_without_looking_at_each(self, monkeypatch: pytest.MonkeyPatch):
        slots, layout = Slots(CPU), layout_of()
        nbytes = layout.nbytes
        slots.fill(flat_of(layout), layout=layout)
        monkeypatch.delattr(Layout, "nbytes")
        assert slots.nbytes == nbytes

    def test_are_never_given_to_two_at_a_time(self):
        slots, layout = Slots(CPU), layout_of()
        wrong: list[float] = []

        def use(value: float) -> None:
            for _ in range(300):
                slot = slots.fill(flat_of(layout, value=value), layout=layout)
                if not (slot.flat == value).all():
                    wrong.append(value)
                slots.let_go(slot)

        threads = [threading.Thread(target=use, args=(float(value),)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert slots.nbytes <= 4 * layout.nbytes
