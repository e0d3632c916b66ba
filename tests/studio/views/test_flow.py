"""Buttons go on in the next line where the window is narrow: none is cut, and all stand in order."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QPushButton, QWidget

from studio.views.flow import Flow, Turning


def made(qtbot) -> tuple[QWidget, list[QPushButton]]:
    holder, buttons = QWidget(), [QPushButton(f"A button with number {n}") for n in range(4)]
    holder.setLayout(Flow(*buttons))
    qtbot.addWidget(holder)
    holder.show()
    return holder, buttons


def lines(buttons: list[QPushButton]) -> list[int]:
    QApplication.processEvents()
    return [sorted({b.y() for b in buttons}).index(b.y()) for b in buttons]


def test_as_many_lines_as_it_takes(qtbot):
    holder, buttons = made(qtbot)
    wide = holder.layout().sizeHint().width() + 4
    for width, expected in ((wide, [0, 0, 0, 0]), (wide // 2 + 8, [0, 0, 1, 1]), (wide // 4 + 8, [0, 1, 2, 3])):
        holder.resize(width, holder.layout().totalHeightForWidth(width))
        assert lines(buttons) == expected and all(b.geometry().right() < width and b.geometry().bottom() < holder.height() for b in buttons)
    buttons[1].hide()
    assert lines([b for b in buttons if b.isVisible()]) == [0, 1, 2]
    assert holder.layout().minimumSize().width() < wide / 3


def test_from_right_to_left_where_the_language_is(qtbot):
    holder, buttons = made(qtbot)
    holder.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
    holder.resize(holder.layout().sizeHint().width() + 40, 60)
    QApplication.processEvents()
    assert [b.x() for b in buttons] == sorted((b.x() for b in buttons), reverse=True)
    assert holder.layout().takeAt(0).widget() is buttons[0] and holder.layout().count() == 3 and holder.layout().takeAt(9) is None


def test_a_row_turns_into_a_column_where_it_has_no_room(qtbot):
    buttons = [QPushButton(f"A button with number {n}") for n in range(3)]
    holder, row = QWidget(), Turning(*buttons)
    row.setParent(holder)
    qtbot.addWidget(holder)
    holder.show()
    least = row.minimumSizeHint().width()
    assert least < buttons[0].minimumSizeHint().width() + 4
    for width, expected in ((3 * least + 40, [0, 0, 0]), (least, [0, 1, 2])):
        row.resize(width, 200)
        assert lines(buttons) == expected and max(b.width() for b in buttons) - min(b.width() for b in buttons) <= 1
