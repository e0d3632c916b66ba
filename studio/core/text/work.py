"""Words of the start, try, export and queue panels."""

from __future__ import annotations

from studio.core.text import Counted, Phrase

# --- shared -------------------------------------------------------------------------------------

CANCEL = Phrase("Cancel")
COPY_DETAILS = Phrase("Copy details")
COPIED = Phrase("Copied.")
DETAILS = Phrase("Details")
REMOVE = Phrase("Remove")
OPEN_FOLDER = Phrase("Open folder")

# --- start --------------------------------------------------------------------------------------

START_TITLE = Phrase("Start")
START_WELCOME = Phrase("What would you like to do?")
START_INTRO = Phrase("Teach a language model on your own computer. Nothing you put in leaves it.")
START_TEACH = Phrase("Teach a model")
START_TEACH_HELP = Phrase("Give it examples of how to answer. You get an adapter: a small skill file.")
START_MIX = Phrase("Mix adapters")
START_MIX_HELP = Phrase("Put several skills together and set how strongly each one is heard.")
START_TRY = Phrase("Try and compare")
START_TRY_HELP = Phrase("Chat with the taught model beside the untaught one.")
START_SAMPLE = Phrase("Open the sample project")
START_SAMPLE_HELP = Phrase("A small shop's questions and answers, ready to be taught in a few minutes.")
START_SAMPLE_NO_MODEL = Phrase("It needs the starter model; fetch it first (one click, above).")
START_RECENT = Phrase("Recent work")
START_RECENT_NONE = Phrase("Nothing yet. What you teach and export will be listed here.")
START_MACHINE = Phrase("This computer")
START_FETCH_TITLE = Phrase("One thing is missing: a model to teach")
START_FETCH_BODY = Phrase("The starter model, SmolLM2-135M-Instruct, is small enough for every computer (about 270 MB on disk). "
                          "It is fetched once; afterwards the studio needs no network.")
START_FETCH = Phrase("Fetch the starter model")
START_FETCH_JOB = Phrase("Fetch the starter model")
START_FETCH_AGAIN = Phrase("Try again")
START_FETCH_RUNS = Phrase("The starter model is being fetched")
START_FETCHED = Phrase("The starter model is ready.")
START_WAITS = Phrase("Waiting for its turn in the queue …")

# --- states of jobs -----------------------------------------------------------------------------

STATES = {"waiting": Phrase("Waiting"), "running": Phrase("Running"), "paused": Phrase("Paused"), "interrupted": Phrase("Interrupted"),
          "finished": Phrase("Done"), "failed": Phrase("Failed"), "cancelled": Phrase("Stopped")}
STATE_MARKS = {"waiting": "◷", "running": "▶", "paused": "⏸", "interrupted": "⚡",
               "finished": "✓", "failed": "✗", "cancelled": "■"}
KINDS = {"train": Phrase("Teaching"), "export": Phrase("Export"), "fetch": Phrase("Download"), "review": Phrase("Comparing"),
         "rebuild": Phrase("Rebuilding"), "find-speed": Phrase("Finding the learning speed")}

# --- queue --------------------------------------------------------------------------------------

QUEUE_TITLE = Phrase("Queue")
QUEUE_EMPTY = Phrase("Nothing to do. What you teach, fetch or export stands here, one after the other.")
QUEUE_COLUMNS = (Phrase("Job"), Phrase("Kind"), Phrase("State"), Phrase("Progress"), Phrase("When"))
QUEUE_LIST = Phrase("Jobs")
QUEUE_PAUSE = Phrase("Pause")
QUEUE_PAUSE_HELP = Phrase("Saves and stops; goes on later at the same step.")
QUEUE_RESUME = Phrase("Continue")
QUEUE_RESUME_HELP = Phrase("Goes on from the last saved step.")
QUEUE_SAME_AGAIN = Phrase("It would end in the same way. Open it in Teach to see what helps.")
QUEUE_CANCEL = Phrase("Stop")
QUEUE_CANCEL_HELP = Phrase("Ends the job; what was saved is kept until you remove it.")
QUEUE_REMOVE_HELP = Phrase("Forgets the job and its saved steps. Finished adapters and models stay.")
QUEUE_UP = Phrase("Move up")
QUEUE_DOWN = Phrase("Move down")
QUEUE_OPEN = Phrase("Show in Teach")
QUEUE_PICK = Phrase("Choose a job to see what happened in it.")
QUEUE_RESUMES = Phrase("Safe to close: resumes at step {step}.")
QUEUE_BEGINS = Phrase("Begins anew when you continue it.")
QUEUE_ATTEMPTS = Counted("{n} attempt", "{n} attempts")
QUEUE_REMOVED = Phrase("“{title}” was removed from the queue.")
QUEUE_NEEDS_JOB = Phrase("Choose a job first.")
QUEUE_TOOK = Phrase("took {amount}")
QUEUE_TODAY = Phrase("today {time}")
QUEUE_LOG = Phrase("What happened")

# --- try ----------------------------------------------------------------------------------------

TRY_TITLE = Phrase("Try")
TRY_NO_BASE = Phrase("Choose a model first.")
TRY_NO_BASE_DO = Phrase("Put an adapter into the stack (in Mix, or from the library), or choose a model here.")
TRY_MODEL = Phrase("Model")
TRY_OPENING = Phrase("Loading {name} …")
TRY_READY = Phrase("Ready. Ask something.")
TRY_SPEAKING = Phrase("Answering …")
TRY_ASK = Phrase("Ask something …")
TRY_ASK_NAME = Phrase("Your question")
TRY_SEND = Phrase("Ask")
TRY_STOP = Phrase("Stop")
TRY_CLEAR = Phrase("New chat")
TRY_AGAIN = Phrase("Ask again")
TRY_AGAIN_HELP = Phrase("The last question once more, with the strengths as they are now.")
TRY_COMPARE = Phrase("Beside the untaught model")
TRY_COMPARE_HELP = Phrase("Every question is also answered by the model without any adapter, with the same seed.")
TRY_COLUMNS = {"stack": Phrase("With your stack"), "base": Phrase("Without (untaught model)"), "a": Phrase("Kept A"), "b": Phrase("Kept B")}
TRY_KEEP = Phrase("Keep these strengths to compare")
TRY_KEEP_HELP = Phrase("Every question is then also answered at these strengths, in a column of its own. Two can be kept.")
TRY_KEPT = Phrase("{column}: {strengths}")
TRY_UNKEEP = Phrase("No longer compare {column}")
TRY_LENGTH = Phrase("Longest answer")
TRY_TEMPERATURE = Phrase("Imagination")
TRY_TEMPERATURE_HELP = Phrase("0 always takes the likeliest word; higher is more surprising. (temperature)")
TRY_TOKENS = Phrase("tokens")
TRY_STAMP = Phrase("{base} · {stack} · {tokens} tokens in {seconds}")
TRY_STAMP_BASE = Phrase("base {print}")
TRY_STAMP_NONE = Phrase("no adapter")
TRY_STAMP_ENTRY = Phrase("{name} {print} at {strength}")
TRY_STAMP_HELP = Phrase("What really answered, as the engine reports it: fingerprint of the base, then every adapter with its strength.")
TRY_STOPPED = Phrase("stopped by you")
TRY_CUT = Phrase("cut at the longest answer")
TRY_CORRECT = Phrase("Put it right")
TRY_CORRECT_HELP = Phrase("Write the answer you would like to hear; it is kept as an example.")
TRY_CORRECT_BOX = Phrase("The answer you would like to hear")
TRY_CORRECT_KEEP = Phrase("Keep as an example")
TRY_CORRECT_CANCEL = Phrase("Leave it")
TRY_CORRECTED = Phrase("put right by you")
TRY_CORRECT_KEPT = Counted("Kept: {n} example so far. At {enough} it is worth teaching again.",
                           "Kept: {n} examples so far. At {enough} it is worth teaching again.")
TRY_CORRECT_ENOUGH = Phrase("{n} answers were put right: enough to teach again.")
TRY_CORRECT_TEACH = Phrase("Teach these")
TRY_STACK = Phrase("Stack")
TRY_STACK_EMPTY = Phrase("The stack is empty: you are talking to the untaught model.")
TRY_STACK_HELP = Phrase("Heard at the next word, also while it is answering.")
TRY_STRENGTH = Phrase("Strength of {name}")
TRY_ON = Phrase("{name} on or off")
TRY_EMPTY = Phrase("Ask something to hear what the model has learned.")
TRY_CHAT = Phrase("Conversation")
TRY_YOU = Phrase("You")

# --- export -------------------------------------------------------------------------------------

EXPORT_TITLE = Phrase("Export")
EXPORT_HEAD = Phrase("Export one complete model")
EXPORT_INTRO = Phrase("The stack is baked into a copy of the model. The result runs without this studio and without any adapter.")
EXPORT_WHAT = Phrase("What is baked in")
EXPORT_BASE = Phrase("Model: {name}")
EXPORT_ENTRY = Phrase("{name} at {strength}")
EXPORT_OFF = Phrase("{name} is off and is left out")
EXPORT_EMPTY = Phrase("The stack has no adapter that is on. Add one in Mix, then export.")
EXPORT_NO_BASE = Phrase("There is no model in the stack yet. Add an adapter in Mix; its model comes with it.")
EXPORT_NAME = Phrase("Name")
EXPORT_WHERE = Phrase("Folder")
EXPORT_CHOOSE = Phrase("Choose …")
EXPORT_CHOOSE_TITLE = Phrase("Folder for the exported model")
EXPORT_FORMAT = Phrase("Number format")
EXPORT_FORMATS = {"same": Phrase("Like the model ({dtype})"), "float32": Phrase("float32 – exact, largest"),
                  "bfloat16": Phrase("bfloat16 – half the size"), "float16": Phrase("float16 – half the size, for older cards")}
EXPORT_SIZE = Phrase("{size} will be written; {free} are free on this disk.")
EXPORT_NO_ROOM = Phrase("There is not enough room: {size} are needed, {free} are free. Choose another folder or a smaller number format.")
EXPORT_TAKEN = Phrase("There is already something called “{name}” in this folder. Choose another name.")
EXPORT_NO_NAME = Phrase("Give the model a name.")
EXPORT_GO = Phrase("Export")
EXPORT_JOB = Phrase("Export {name}")
EXPORT_RUNS = Phrase("Exporting “{name}”")
EXPORT_VERIFIED = Phrase("Verified: the exported model is what you heard")
EXPORT_NOT_VERIFIED = Phrase("The exported model is NOT what you heard")
EXPORT_UNVERIFIED = Phrase("Exported, not verified")
EXPORT_CHECKS = Phrase("Checks")
EXPORT_PASSED = Phrase("passed")
EXPORT_MISSED = Phrase("failed")
EXPORT_SAMPLES = Phrase("Sample answers of the exported model")
EXPORT_RESULT = Phrase("{path}  ·  {size}  ·  {time}")
EXPORT_RECEIPT = Phrase("Receipt: {path}")
EXPORT_ANOTHER = Phrase("Export another")
EXPORT_QUESTIONS = Phrase("Questions for the receipt")
EXPORT_QUESTIONS_HELP = Phrase("One a line. The exported model answers them; the answers stand on the receipt.")
EXPORT_QUESTION = Phrase("What can you do for me?")
