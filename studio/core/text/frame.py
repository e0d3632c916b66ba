"""Words of the window's frame: menus, library, stack, inspector, activity."""

from __future__ import annotations

from studio.core.text import Counted, Phrase

# notices
details = Phrase("Details")
hide_details = Phrase("Hide details")
copy = Phrase("Copy")
copied = Phrase("Copied.")
close = Phrase("Close this message")
notices = Phrase("Messages")
LEVELS = {"bad": Phrase("Error"), "warn": Phrase("Caution"), "good": Phrase("Done"), "info": Phrase("Note")}

# steps that can be undone (shown as "Undo: …")
undo_add = Phrase("add {name}")
undo_add_many = Counted("add {n} adapter", "add {n} adapters")
undo_remove = Phrase("remove {name}")
undo_move = Phrase("move {name}")
undo_strength = Phrase("strength of {name}")
undo_on = Phrase("switch {name} on")
undo_off = Phrase("switch {name} off")
undo_base = Phrase("choose the model {name}")

# sizes and kinds
KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT", "IA3": "IA³", "VERA": "VeRA",
         "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "P-tuning", "FOURIERFT": "FourierFT", "HRA": "HRA", "VBLORA": "VB-LoRA"}
kind_with_rank = Phrase("{kind} {rank}")


def kind(peft_type: str, config: dict | None = None) -> str:
    """A method's usual spelling; LoRA with its variants by their own names."""
    if peft_type == "LORA" and config and config.get("use_dora"):
        return "DoRA"
    return KINDS.get(peft_type, peft_type or unknown_kind())


def kind_and_rank(peft_type: str, rank: int | None, config: dict | None = None) -> str:
    return kind_with_rank(kind=kind(peft_type, config), rank=rank) if rank else kind(peft_type, config)


unknown_kind = Phrase("unknown kind")
unknown_model = Phrase("an unknown model")
places = Counted("{n} place", "{n} places")
layers = Counted("{n} layer", "{n} layers")
_layer = Phrase("Layer {number}")


def layer(number: int) -> str:
    return _layer(number=number)


# the library
tree_strangers = Phrase("For other models")
tree_strangers_tip = Phrase("Adapters whose own model is not in the library")
tree_exports = Phrase("Exports")
tree_runs = Phrase("Trainings")
tree_data = Phrase("Data sets")
checkpoint = Phrase("Saved at step {step}")
missing_file = Phrase("not there")
_run_states = {"finished": Phrase("Done"), "failed": Phrase("Failed"), "cancelled": Phrase("Stopped"), "paused": Phrase("Paused"),
               "": Phrase("Not ended")}


def run_state(state: str) -> str:
    return _run_states[state]()


tree_problems = Phrase("Cannot be used")
tree_adapter_tip = Phrase("{name}: drag it into the stack, or press Enter")
misfit_other_model = Phrase("{adapter} was taught on {base} and does not fit {model}.")
not_in_library = Phrase("{name} is not in the library. Drop its folder on the library first.")
already_in_stack = Phrase("{name} is in the stack already. Change its strength there.")
base_missing = Phrase("{adapter} needs the model {base}, which is not in the library.")
stack_base_gone = Phrase("The model {model} is no longer in the library. Choose another model for the stack.")
entry_gone = Phrase("Its files are gone.")
no_adapter_in_drop = Phrase("There is no adapter in this folder (adapter_config.json is missing).")
row_spoken = Phrase("{name}, position {place} of {count}, strength {percent} percent, {state}")
on = Phrase("on")
off = Phrase("off")

library = Phrase("Library")
library_help = Phrase("Models with the adapters that fit them. Enter puts an adapter into the stack.")
library_search = Phrase("Search the library")
library_no_hits = Phrase("Nothing in the library is called so. Empty the search to see everything.")
library_empty = Phrase("Your library is empty")
library_empty_do = Phrase("A model comes first; the adapters you teach it will stand here.")
get_starter = Phrase("Get a model")
imported = Phrase("{name} is in the library now.")
no_adapter_in_drop_do = Phrase("Drop the folder that holds adapter_config.json and adapter_model.safetensors.")

# the stack
mix = Phrase("Mix")
mix_heading = Phrase("Mix adapters")
mix_intro = Phrase("An adapter is a skill file. Stack several on one model and set how strongly each is heard; a slider is heard at the next word.")
stack = Phrase("Adapter stack")
stack_help = Phrase("Alt+Up and Alt+Down move a row, Delete removes it, Space switches it, Left and Right change its strength.")
stack_model = Phrase("Model of the stack")
stack_model_help = Phrase("All adapters of a stack sit on this model.")
stands_on = Phrase("Model")
choose_model = Phrase("Choose a model")
no_model_yet = Phrase("No model in the library yet")
gone = Phrase("{name} (gone)")
add_adapter_menu = Phrase("Add an adapter")
advanced = Phrase("Advanced")
advanced_stack_help = Phrase("Sliders from −100 % to 200 %: a negative strength turns a skill round.")
go_try = Phrase("Try it")
go_export = Phrase("Export")
export_needs = Phrase("Switch an adapter on first: without one the export would be the model itself.")
no_adapters_yet = Phrase("There is no adapter in the library yet. Teach one, or drop an adapter folder on the library.")
stack_empty = Phrase("Drag an adapter here")
stack_empty_do = Phrase("from the library at the left, or choose it there and press Enter")
handle_help = Phrase("Drag to change the order (Alt+Up, Alt+Down)")
switch_of = Phrase("{name} on")
switch_help = Phrase("On or off (Space). An adapter that is off stays in the stack but is not heard.")
strength_of = Phrase("Strength of {name}")
strength_number_of = Phrase("Strength of {name} in percent")
slider_help = Phrase("Strength: 100 % is exactly as it was taught, 0 % is silent. Double-click for 100 %.")
remove_of = Phrase("Remove {name} from the stack")
removed = Phrase("{name} left the stack.")
moved = Phrase("{name}, position {place} of {count}")
added = Phrase("{name} is in the stack, position {count}.")
left_the_stack = Counted("{names} was taught on another model and left the stack. Undo brings it back.",
                         "{names} were taught on another model and left the stack. Undo brings them back.")
_heard_nothing = Phrase("The model alone is heard: no adapter is on.")
_heard_no_model = Phrase("Choose a model, or add an adapter: its model comes with it.")
_heard_one = Phrase("{name} at {percent} %")
_heard_all = Phrase("Heard: {list}.")
_and = Phrase("{first} and {last}")


def heard(has_model: bool, entries: list[tuple[str, str]]) -> str:
    """What a stack says in one sentence; entries are (name, percent as the country writes it)."""
    if not has_model:
        return _heard_no_model()
    if not entries:
        return _heard_nothing()
    parts = [_heard_one(name=name, percent=percent) for name, percent in entries]
    return _heard_all(list=_and(first=", ".join(parts[:-1]), last=parts[-1]) if len(parts) > 1 else parts[0])

# the window
app_name = Phrase("Adapter Studio")
workspaces = Phrase("Workspaces")
activity = Phrase("Activity")
inspector = Phrase("Inspector")
not_now = Phrase("This cannot be done now.")
menu_file, menu_edit, menu_stack, menu_go = Phrase("File"), Phrase("Edit"), Phrase("Stack"), Phrase("Go")
menu_work, menu_view, menu_help = Phrase("Work"), Phrase("View"), Phrase("Help")
MENUS = (menu_file, menu_edit, menu_stack, menu_work, menu_go, menu_view, menu_help)
palette = Phrase("Commands")
palette_field = Phrase("What do you want to do?")
palette_list = Phrase("Commands found")

# the inspector
inspector_empty = Phrase("Nothing is selected")
inspector_empty_do = Phrase("Choose a model or an adapter in the library to see what is known about it.")
a_model = Phrase("Model")
an_adapter = Phrase("{kind} adapter")
a_run = Phrase("Training")
a_checkpoint = Phrase("State of a training")
a_dataset = Phrase("Data set")
fact_state = Phrase("State")
fact_method = Phrase("Method")
fact_steps = Phrase("Steps")
fact_saved = Phrase("Saved states")
fact_of_run = Phrase("Of the training")
fact_used_by = Phrase("Used by")
nobody = Phrase("nobody yet")
show_run = Phrase("Show in Teach")
run_gone = Phrase("The queue no longer knows this training.")
teach_from = Phrase("Teach from this")
a_place = Phrase("A place in the model")
on_disk = Phrase("On disk")
taught = Phrase("How it was taught")
yes = Phrase("yes")
no_chat = Phrase("no: it cannot be taught from questions and answers")
add_to_stack = Phrase("Add to stack")
rebuild = Phrase("Rebuild")
rebuild_help = Phrase("Teaches it once more from its recipe: on this computer the file comes out the same to the byte.")
rebuild_title = Phrase("{name}, rebuilt")
rebuild_queued = Phrase("“{name}” is being rebuilt from its recipe; the queue tells whether it came out the same.")
open_folder = Phrase("Open folder")
copy_path = Phrase("Copy path")
fact_parameters = Phrase("Parameters")
fact_family = Phrase("Family")
fact_format = Phrase("Number format")
fact_size = Phrase("Size")
fact_chat = Phrase("Made for chat")
fact_adapters = Phrase("Adapters that fit")
fact_folder = Phrase("Folder")
fact_fingerprint = Phrase("Fingerprint")
fact_path = Phrase("Path")
fact_numbers = Phrase("Numbers")
fact_why = Phrase("Why")
fact_do = Phrase("What you can do")
fact_base = Phrase("Made for")
fact_capacity = Phrase("Capacity (rank)")
fact_places = Phrase("Sits in")
fact_examples = Phrase("Examples")
fact_rows = Phrase("Rows learned")
fact_passes = Phrase("Passes")
fact_error = Phrase("Error on unseen")
fact_made = Phrase("Made on")
fact_compared = Phrase("Unseen rows")
fact_votes = Phrase("Blind vote")
compared = Phrase("{wins} better, {same} same, {losses} worse")
voted = Phrase("{taught} of {n} for the taught one")
from_to = Phrase("{before} → {after}")
_places_in_layers = Phrase("{places}, {layers}")


def places_in_layers(places: str, layers: str) -> str:
    return _places_in_layers(places=places, layers=layers)


# activity
idle = Phrase("Nothing is running")
waiting = Counted("{n} job waits", "{n} jobs wait")
running = Phrase("{title}: {stage}")
step_of = Phrase("step {step} of {steps}")
progress = Phrase("Progress of the job that runs")
show_queue = Phrase("Show the queue")
pause_job = Phrase("Pause the job")
pause_job_help = Phrase("Saves where it is and stops; it goes on from there when you resume it.")
pausing = Phrase("Pausing: the job saves where it is.")
memory = Phrase("Memory {used} of {total} GB")
memory_help = Phrase("Memory of this computer in use by all programs")
disk = Phrase("Disk {free} free")
disk_help = Phrase("Room left on the disk where the library lies")
disk_gone = Phrase("The library's disk is not there")
undo = Phrase("Undo")
redo = Phrase("Redo")
undo_what = Phrase("Undo: {words}")
redo_what = Phrase("Redo: {words}")

# workspaces
_workspaces = {"start": Phrase("Start"), "teach": Phrase("Teach"), "mix": Phrase("Mix"), "try": Phrase("Try"), "export": Phrase("Export"),
               "queue": Phrase("Queue")}
_workspaces_help = {"start": Phrase("Where to begin, and what this computer can do"), "teach": Phrase("Teach a model from your examples"),
                    "mix": Phrase("Stack adapters and set how strongly each is heard"),
                    "try": Phrase("Talk to the stack, beside the untouched model"),
                    "export": Phrase("Bake the stack into a model and prove it"), "queue": Phrase("Every job: running, waiting and past")}


def workspace(key: str) -> str:
    return _workspaces[key]()


def workspace_help(key: str) -> str:
    return _workspaces_help[key]()


# the machine
card_nvidia, card_amd, card_apple = Phrase("an NVIDIA graphics card"), Phrase("an AMD graphics card"), Phrase("an Apple chip")
card_none = Phrase("no graphics card")
cores = Counted("{n} core", "{n} cores")
machine = Phrase("{cores}, {memory} GB memory, {card}: {reach}.")
reach_night = Phrase("models up to about {size} billion parameters can be taught overnight")
reach_small = Phrase("small models such as the starter model can be taught")

# actions
do_import = Phrase("Add an adapter folder…")
do_import_help = Phrase("Checks an adapter folder and copies it into the library")
do_starter = Phrase("Get the starter model")
do_starter_help = Phrase("A small chat model that learns in minutes, also without a graphics card")
starter_job = Phrase("Get the starter model")
starter_here = Phrase("The starter model is in the library.")
starter_coming = Phrase("The starter model is on its way.")
do_refresh = Phrase("Look at the library again")
do_refresh_help = Phrase("Finds models and adapters that other programs put there")
do_folder = Phrase("Show the studio's folder")
do_folder_help = Phrase("Opens the folder that holds library, runs and exports")
do_quit = Phrase("Quit")
do_quit_help = Phrase("A running job is saved and can be resumed at the next start")
do_undo_help = Phrase("Takes back the last change of the stack")
do_redo_help = Phrase("Does again what was taken back")
nothing_to_undo = Phrase("There is nothing to undo.")
nothing_to_redo = Phrase("There is nothing to redo.")
do_cut = Phrase("Cut")
do_cut_help = Phrase("Takes the chosen row out of the stack, ready to be pasted")
do_copy = Phrase("Copy")
do_copy_help = Phrase("Copies the chosen adapter, ready to be pasted into the stack")
do_paste = Phrase("Paste into the stack")
do_paste_help = Phrase("Puts copied adapters behind the chosen row")
do_find = Phrase("Search the library")
do_find_help = Phrase("Goes to the search field above the library")
do_add_help = Phrase("Puts the adapter that is chosen in the library at the end of the stack")
choose_an_adapter = Phrase("Choose an adapter in the library first.")
choose_a_row = Phrase("Choose a row of the stack first.")
do_switch = Phrase("Switch on or off")
do_switch_help = Phrase("An adapter that is off stays in the stack but is not heard")
do_full = Phrase("Strength back to 100 %")
do_full_help = Phrase("Exactly as the adapter was taught")
do_up = Phrase("Move up")
do_up_help = Phrase("Moves the chosen row one place up")
do_down = Phrase("Move down")
do_down_help = Phrase("Moves the chosen row one place down")
do_remove = Phrase("Remove from the stack")
do_remove_help = Phrase("The adapter stays in the library")
do_resume = Phrase("Resume")
do_resume_help = Phrase("Goes on with all jobs that were paused or interrupted")
nothing_to_resume = Phrase("No job is paused or interrupted.")
do_palette = Phrase("Command palette…")
do_palette_help = Phrase("Finds every command by a few letters")
_themes = {"system": Phrase("Colours of the system"), "light": Phrase("Light"), "dark": Phrase("Dark"), "contrast": Phrase("High contrast")}
do_theme_help = Phrase("Changes the colours of the window")


def theme_name(mode: str) -> str:
    return _themes[mode]()


_languages = {"en": "English", "de": "Deutsch"}
do_language_help = Phrase("Words of the window; changes at the next start")
language_later = Phrase("The new language is spoken from the next start on.")


def language_name(code: str) -> str:
    """A language by its own name, in whatever language the window speaks."""
    return _languages.get(code, code)


do_larger = Phrase("Larger text")
do_larger_help = Phrase("Makes all text larger")
do_smaller = Phrase("Smaller text")
do_smaller_help = Phrase("Makes all text smaller")
do_normal = Phrase("Normal text size")
do_normal_help = Phrase("Back to the size at the beginning")
largest = Phrase("The text is as large as it can be.")
smallest = Phrase("The text is as small as it can be.")
do_dock_help = Phrase("Shows or hides this side of the window")
do_shortcuts = Phrase("Keyboard shortcuts")
do_shortcuts_help = Phrase("All keys at a glance")
column_what, column_keys, column_does = Phrase("Command"), Phrase("Keys"), Phrase("What it does")
do_about = Phrase("About Adapter Studio")
do_about_help = Phrase("Version and folder")
about = Phrase("Version {version}\n\nTeach, mix and export adapters for language models on your own computer.\n\nEverything lies in {folder}")

# jobs
job_done = Phrase("Done: {title}")
interrupted = Phrase("“{title}” was interrupted and is not done yet.")
resumes_at = Phrase("Nothing is lost up to step {step}: it goes on from there.")
begins_anew = Phrase("It had not saved anything yet and begins anew.")
closing = Phrase("“{title}” is being saved, then the window closes.")
closing_why = Phrase("It goes on where it stopped when you open the studio again and press Resume.")
close_dock = Phrase("Close {name}")
close_dock_help = Phrase("Hides {name}; the View menu brings it back")
