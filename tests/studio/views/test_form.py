"""The form builder: any described field becomes an editor, gives back what it shows, and says what is wrong under itself."""

from dataclasses import dataclass

import pytest
from PySide6.QtCore import QEvent, QLocale, QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QApplication, QCheckBox, QComboBox

from engine.methods.registry import describe
from engine.specs import ExportSpec, Spec, TrainSpec, describe_fields, knob
from studio.views import a11y
from studio.views.form import Form


@dataclass
class Everything(Spec):
    name: str = knob(label="Name", help="Needed.")
    rank: int = knob(8, label="Capacity", term="r", help="Size.", low=1, high=64)
    speed: float = knob(0.5, label="Speed", help="Rate.", low=0, high=1, unit="1/s")
    loud: bool = knob(False, label="Loud", help="Or not.")
    sort: str = knob("a", label="Kind", help="Which.", choices=("a", "b"), advanced=True)
    lines: list[str] = knob(factory=list, label="Lines", help="Several.", advanced=True)
    table: dict = knob(factory=dict, label="Table", term="rank_pattern", help="Pairs.", advanced=True)
    layers: list[str] | str | None = knob(None, label="Layers", term="target_modules", help="Where.", advanced=True)


GOOD = {"name": "Ä", "rank": 16, "speed": 0.25, "loud": True, "sort": "b", "lines": ["x", "y z"], "table": {"q": 2}, "layers": ["q", "v"]}


@pytest.fixture
def form(qtbot):
    made = Form(describe_fields(Everything), folded="More", locale=QLocale.c())
    qtbot.addWidget(made)
    return made


def test_what_is_put_in_comes_out(form):
    form.put(GOOD)
    assert form.values() == GOOD and form.problems() == {}
    assert Everything(**form.values()).problems() == {}
    form.put({"layers": "all-linear"})
    assert form.values()["layers"] == "all-linear"


@pytest.mark.parametrize("cls", [TrainSpec, ExportSpec])
def test_defaults_of_real_specs_show_no_difference_and_are_valid(cls, qtbot):
    form = Form(describe_fields(cls), leave_out=("base", "data", "out", "stack"))
    qtbot.addWidget(form)
    assert form.different() == {} and form.problems() == {}
    form.show()
    assert a11y.unnamed(form) == []


@pytest.mark.parametrize("method", describe().methods, ids=lambda method: method["peft_type"])
def test_a_method_s_form_says_nothing_before_somebody_changes_it(method, qtbot):
    form = Form(method["fields"], folded="More", locale=QLocale.c())
    qtbot.addWidget(form)
    assert form.different() == {} and form.problems() == {}
    for name, field in form.fields.items():
        if isinstance(field.editor, QComboBox):
            for number, choice in enumerate(field.about["choices"]):
                field.editor.setCurrentIndex(number)
                assert form.values()[name] == choice
            field.editor.setCurrentIndex(max(0, field.editor.findData(field.default)))


def test_a_number_that_may_be_a_share_is_what_was_written(qtbot):
    fields, = (method["fields"] for method in describe().methods if method["peft_type"] == "OSF")
    form = Form(fields, locale=QLocale.c())
    qtbot.addWidget(form)
    for written, value in (("1", 1), ("0.5", 0.5), ("16", 16), ("", None)):
        form.fields["effective_rank"].editor.setText(written)
        assert form.values()["effective_rank"] == value and type(form.values()["effective_rank"]) is type(value)


@pytest.mark.parametrize("name, typed, says", [("rank", "many", "not a number"), ("rank", "2.5", "whole"), ("rank", "0", "At least 1"),
                                               ("rank", "65", "At most 64"),
                                               ("speed", "2", "At most 1"), ("name", "", "needed"), ("table", "[1]", "Write it as")])
def test_a_fault_stands_under_its_field_and_what_was_typed_stays(form, qtbot, name, typed, says):
    form.put(GOOD)
    editor = form.fields[name].editor
    editor.selectAll()
    with qtbot.waitSignal(form.changed, timeout=1000):
        editor.clear() if not typed else None
        qtbot.keyClicks(editor, typed) if typed else editor.textEdited.emit("")
    assert says in form.fields[name].fault() and editor.text() == typed and says in editor.accessibleDescription()
    assert name not in form.values() and set(form.problems()) == {name}
    form.put({name: GOOD[name]})
    assert form.fields[name].fault() == "" and form.values() == GOOD


def test_numbers_are_read_and_shown_in_the_persons_language(qtbot):
    german = Form(describe_fields(Everything), locale=QLocale(QLocale.Language.German))
    qtbot.addWidget(german)
    german.put({"speed": 0.25})
    editor = german.fields["speed"].editor
    assert editor.text() == "0,25"
    editor.setText("0,5")
    assert german.values()["speed"] == 0.5
    editor.setText("2e-4")                 # as it stands in every paper
    assert german.values()["speed"] == 2e-4
    for typed in ("0.001", "0,001"):       # nobody groups the digits behind a nought
        editor.setText(typed)
        assert german.values()["speed"] == 0.001


def test_fields_that_stood_at_the_preset_follow_it_others_stay(form):
    form.put({"name": "x"})
    form.set_defaults({"rank": 32, "speed": 0.75})
    assert form.values()["rank"] == 32 and "rank" not in form.different()
    form.put({"rank": 5})
    form.set_defaults({"rank": 8})
    assert form.values()["rank"] == 5 and form.different()["rank"] == 5


def test_advanced_fields_are_folded_away(form):
    form.show()
    assert form.fields["rank"].isVisible() and not form.fields["layers"].isVisible()
    form.fold.head.click()
    assert form.fields["layers"].isVisible()


def test_the_wheel_never_changes_a_field_without_focus(form):
    form.fold.open()
    form.show()
    combo = form.fields["sort"].editor
    assert isinstance(combo, QComboBox) and isinstance(form.fields["loud"].editor, QCheckBox)
    wheel = QWheelEvent(QPointF(5, 5), QPointF(5, 5), QPoint(0, -120), QPoint(0, -120), Qt.MouseButton.NoButton,
                        Qt.KeyboardModifier.NoModifier,
                        Qt.ScrollPhase.NoScrollPhase, False)
    QApplication.sendEvent(combo, wheel)
    assert combo.currentData() == "a" and wheel.type() == QEvent.Type.Wheel


def test_sentences_from_the_engine_find_their_field(form):
    form.complain({"rank": "“Capacity” is too large for this model.", "nobody": "x"})
    assert "too large" in form.fields["rank"].fault()
