"""Laws of the order of rows: steps of always the same size, passes that meet each row once, decided by the seed alone."""

from components.training.row_order import RowOrder


def test_a_pass_meets_each_row_once_and_the_next_one_in_another_order() -> None:
    order = list(RowOrder(num_rows=20, num_drawn=48, seed=0))
    assert len(order) == len(RowOrder(20, 48, 0)) == 48
    assert sorted(order[:20]) == sorted(order[20:40]) == list(range(20))
    assert order[:20] != order[20:40]


def test_the_order_depends_on_the_seed_alone_and_a_longer_run_begins_like_a_shorter_one() -> None:
    order = list(RowOrder(20, 48, 0))
    assert order == list(RowOrder(20, 48, 0)) and order != list(RowOrder(20, 48, 1))
    assert list(RowOrder(20, 100, 0))[:48] == order


def test_fewer_rows_than_a_step_has_are_taken_again() -> None:
    order = list(RowOrder(3, 8, 0))
    assert len(order) == 8 and sorted(order[:6]) == [0, 0, 1, 1, 2, 2]


def test_the_order_is_the_same_on_every_machine() -> None:
    assert list(RowOrder(10, 10, 7)) == [0, 3, 4, 9, 7, 6, 1, 5, 8, 2]
