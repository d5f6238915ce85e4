"""hifi.cli.render: heads as a person reads them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hifi.cli import render

IMPORTANCE = [[0.5, 0.125, 0.375], [0.25, 0.25, 0.5]]
SELECTED = [[0], [1, 2]]


def drawn(width):
    return render.heat_map(IMPORTANCE, selected=SELECTED, width=width).plain.splitlines()


class TestHeatMap:
    def test_shows_percent_with_the_top_layer_first_and_brackets_at_selected_heads(self):
        assert drawn(80) == [
            "layer 1  25.0 [25.0][50.0]",
            "layer 0 [50.0] 12.5  37.5 ",
            "head      0     1     2",
        ]

    def test_leaves_out_decimals_where_they_do_not_fit(self):
        assert drawn(20) == ["layer 1  25 [25][50]", "layer 0 [50] 12  38 ", "head     0   1   2"]

    def test_shows_rank_classes_where_numbers_do_not_fit(self):
        assert drawn(10)[:2] == ["layer 1  0 [0][9]", "layer 0 [9] 0  6 "]

    @pytest.mark.parametrize(("width", "cell"), [(80, 6), (79, 4)])
    def test_twelve_heads_fill_a_terminal_of_80_columns(self, width, cell):
        text = render.heat_map([[1 / 12] * 12], selected=[[0]], width=width).plain
        assert len(text.splitlines()[0]) == 8 + 12 * cell

    def test_equal_heads_are_drawn_alike(self):
        text = render.heat_map([[0.5, 0.5]], selected=[[]], width=80)
        assert len({span.style for span in text.spans}) == 1

    def test_more_important_heads_have_brighter_colours(self):
        text = render.heat_map([[0.1, 0.3, 0.6]], selected=[[]], width=80)
        colours = [span.style.bgcolor.get_truecolor() for span in text.spans]
        assert colours[0].green < colours[1].green < colours[2].green

    def test_a_non_finite_value_counts_as_zero(self):
        text = render.heat_map([[None, 1.0]], selected=[[1]], width=80).plain
        assert text.splitlines()[0] == "layer 0   0.0 [100.0]"

    def test_colours_of_a_budget_compare_all_layers(self):
        shares = [[0.1, 0.2], [0.7, 0]]
        text = render.heat_map(shares, selected=[[], [0]], width=80, pool="model")
        assert text.plain.splitlines()[:2] == ["layer 1 [70.0]  0.0 ", "layer 0  10.0  20.0 "]
        colours = [span.style.bgcolor.get_truecolor() for span in text.spans]  # top layer first
        assert colours[0].green > colours[3].green >= colours[2].green > 0


def printed(**selection):
    stream = io.StringIO()
    render.print_heads(Console(file=stream, width=80), selection)
    return stream.getvalue().splitlines()


class TestPrintHeads:
    def test_the_papers_selection_is_one_heat_map(self):
        layers = [{"selected": [1], "importance": [0.25, 0.75]}]
        expected = ["layer 0  25.0 [75.0]", "head      0     1"]
        assert printed(layers=layers) == expected
        assert printed(layers=layers, score="pagerank", budget=None) == expected

    def test_another_score_stands_above_the_papers(self):
        layers = [{"selected": [0], "values": [3.0, 1.0], "importance": [0.25, 0.75]}]
        assert printed(layers=layers, score="gradient") == [
            "score gradient, its shares of the layer",
            "layer 0 [75.0] 25.0 ",
            "head      0     1",
            "",
            "importance in the paper (PageRank), its shares of the layer",
            "layer 0 [25.0] 75.0 ",
            "head      0     1",
        ]

    def test_a_budget_compares_all_layers(self):
        layers = [
            {"selected": [], "values": [3.0, 1.0], "importance": [0.75, 0.25]},
            {"selected": [1], "values": [2.0, 4.0], "importance": [0.25, 0.75]},
        ]
        lines = printed(layers=layers, budget=1)
        assert lines[:3] == [
            "score pagerank, its shares of the model",
            "layer 1  20.0 [40.0]",
            "layer 0  30.0  10.0 ",
        ]
        assert lines[-2] == "layer 0  75.0  25.0 "

    def test_a_selection_made_by_hand_is_a_list(self):
        stream = io.StringIO()
        layers = [{"selected": [1]}, {"selected": []}, {"selected": [0, 2]}]
        render.print_heads(Console(file=stream), {"layers": layers})
        assert stream.getvalue() == "layer  2  heads 0, 2\nlayer  0  heads 1\n"
