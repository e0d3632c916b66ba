"""Words of the Teach panel: data, model, plan, training and review."""

from __future__ import annotations

from studio.core.text import Counted, Phrase

TITLE = Phrase("Teach")
STEPS = {"data": Phrase("Data"), "model": Phrase("Model"), "plan": Phrase("Plan"), "train": Phrase("Train"), "review": Phrase("Review")}
STEP_HELP = Phrase("Step {number}: {name}. {state}")
STEP_DONE = Phrase("Ready.")
NEXT = Phrase("Next: {step}")

# --- what is missing ----------------------------------------------------------------------------

NEEDS_DATA = Phrase("Choose a file with examples, or paste some.")
NEEDS_COUNT = Phrase("Not all examples are counted yet.")
NEEDS_MODEL = Phrase("Choose the model that is to learn.")
NEEDS_NAME = Phrase("Give the new skill a name.")
NAME_TAKEN = Phrase("An adapter called “{name}” exists already. Choose another name.")
NEEDS_START = Phrase("Nothing is being taught yet. Start it on the Plan page.")
TRAIN_TO_PLAN = Phrase("To the plan")
NEEDS_RESULT = Phrase("There is nothing to review before a training has ended.")
BAD_DATA = Phrase("This file cannot be used yet.")

# --- data ---------------------------------------------------------------------------------------

DATA_HEAD = Phrase("What should it learn?")
DATA_INTRO = Phrase("Examples of a question and the answer you would like to hear. Fifty are enough for a style.")
DATA_DROP = Phrase("Drop a file or a folder here")
DATA_KINDS = Phrase("Tables, texts, office files, PDF, web pages, mail, zip, chats from WhatsApp, Telegram or ChatGPT")
DATA_CHOOSE = Phrase("Choose a file …")
DATA_CHOOSE_TITLE = Phrase("Choose a file with examples")
DATA_FILTER = Phrase("Examples (*.csv *.tsv *.xlsx *.parquet *.json *.jsonl *.txt *.md *.docx *.pdf *.html *.htm *.zip *.mbox *.eml);;All files (*)")
DATA_FOLDER = Phrase("Choose a folder …")
DATA_FOLDER_TITLE = Phrase("Choose a folder with examples")
DATA_FOLDER_HELP = Phrase("All files in it that can be read, of whatever kinds, become one list of examples.")
DATA_ONE_ONLY = Phrase("These are several files. Put them into one folder and drop that: all of them are read.")
DATA_PASTE = Phrase("Paste examples …")
DATA_PASTE_HEAD = Phrase("Paste examples here: a table from a spreadsheet, a chat, questions with answers (“Q: … A: …”), plain text, or JSON.")
DATA_PASTE_HINT = Phrase("question\tanswer\nWhen are you open?\tFrom seven to six, every day.")
DATA_PASTE_NAME = Phrase("Pasted examples")
DATA_PASTE_USE = Phrase("Use this text")
DATA_SAMPLES = Phrase("Or begin with a sample:")
DATA_OTHER = Phrase("Other file …")
DATA_READING = Phrase("Reading {name} …")
DATA_HELD = Phrase("{learned} to learn from, {held} held back for testing.")
DATA_READING_NAME = Phrase("Reading the file")
DATA_SO_FAR = Phrase("So far {found}")
DATA_COUNTING = Phrase("The rest is being counted …")
DATA_COUNTING_NAME = Phrase("Counting the examples")
DATA_STOP = Phrase("Stop counting")
DATA_STOP_HELP = Phrase("The first examples stay to be looked at. What is to be taught has to be counted first.")
DATA_COUNT = Phrase("Count all")
DATA_COUNT_HELP = Phrase("Reads the whole file. You can go on meanwhile.")
DATA_COUNT_STOPPED = Phrase("Not all are counted.")
DATA_EXAMPLES = Phrase("Your examples")
DATA_EXAMPLES_HELP = Phrase("Each one as it was read from the file. The one that is chosen stands beside the list as the model sees it.")
DATA_NUMBER = Phrase("Number of the example")
DATA_NUMBER_HELP = Phrase("Type a number to look at that example.")
DATA_OF = Phrase("of {n}")
DATA_OF_FIRST = Phrase("of the first {n}")
DATA_HELD_TAG = Phrase("held back")
DATA_TURNS = Counted("… {n} message between …", "… {n} messages between …")
DATA_EXAMPLE_SAID = Phrase("Example {number}: {said}")
DATA_EXACT = Phrase("Exactly what the model sees")
DATA_EXACT_HELP = Phrase("The marked part is learned; the rest is only read.")
DATA_EXACT_NO_MODEL = Phrase("Choose a model to see the exact text it is shown.")
DATA_TOKENS = Phrase("{tokens} of at most {limit} tokens, {learned} of them learned")
DATA_TOO_LONG = Phrase("{tokens} tokens: longer than the limit of {limit}; this example will be left out")
DATA_NOTHING_LEARNED = Phrase("Nothing in this example is learned")
DATA_ASK = Phrase("What are these columns?")
DATA_ASK_HELP = Phrase("Say which one is the question and which the answer, or which is plain text. The file stays as it is.")
DATA_ASK_USE = Phrase("Read it like this")
DATA_NOTES = Phrase("Worth knowing")
DATA_LOOKING = Phrase("Looking …")
DATA_ROLE = Phrase("What “{column}” is")
DATA_ROLES = {"question": Phrase("Question"), "answer": Phrase("Answer"), "context": Phrase("Context"), "system": Phrase("System prompt"),
              "messages": Phrase("Conversation"), "text": Phrase("Plain text"), "user": Phrase("asks"), "assistant": Phrase("answers"),
              "ignore": Phrase("not used")}
PROBLEMS_TITLE = Phrase("Looking for problems")
PROBLEMS_LOOKING = Phrase("Looking at every example …")
PROBLEMS_MANY = Phrase("Looking at {n} examples takes some minutes. You can go on meanwhile.")
PROBLEMS_SO_FAR = Phrase("Looking at every example: {n} of {total} …")
PROBLEMS_STOP = Phrase("Stop looking")
PROBLEMS_STOPPED = Phrase("Not looked at to the end.")
PROBLEMS_SHOW = Phrase("Show")
PROBLEMS_SHOW_HELP = Phrase("Goes to the example in the list; again, to the next one.")
PROBLEMS_CHECK = Phrase("Look for problems")
PROBLEMS_COUNT = Counted("{n} kind of problem", "{n} kinds of problems")
PROBLEMS_NONE = Phrase("No problems found")
PROBLEMS_UNDO = Phrase("Undo change")
PROBLEMS_REDO = Phrase("Redo change")
FIXES = {"drop": Phrase("Leave out"), "keep-one": Phrase("Keep one of each"), "keep-usual": Phrase("Keep the usual answer"), "mask": Phrase("Mask"),
         "strip": Phrase("Remove the signs"), "shorten": Phrase("Shorten"), "merge": Phrase("Join the answers")}
PROBLEMS = {
    "nothing-learned": Counted("{n} example teaches nothing", "{n} examples teach nothing"),
    "leak": Counted("{n} learned example is also held back for testing", "{n} learned examples are also held back for testing"),
    "contradiction": Counted("{n} example contradicts others", "{n} examples contradict others"),
    "duplicate": Counted("{n} example is there more than once", "{n} examples are there more than once"),
    "near-duplicate": Counted("{n} example says nearly the same as another", "{n} examples say nearly the same as others"),
    "empty": Counted("{n} answer says nothing", "{n} answers say nothing"),
    "cut": Counted("{n} answer breaks off", "{n} answers break off"),
    "too-long": Counted("{n} example is over {limit} tokens and would be left out", "{n} examples are over {limit} tokens and would be left out"),
    "language": Counted("{n} answer is in another language than the rest", "{n} answers are in another language than the rest"),
    "personal-mail": Counted("{n} example holds an e-mail address", "{n} examples hold e-mail addresses"),
    "personal-phone": Counted("{n} example holds a telephone number", "{n} examples hold telephone numbers"),
    "personal-iban": Counted("{n} example holds a bank account", "{n} examples hold bank accounts"),
    "personal-card": Counted("{n} example holds a card number", "{n} examples hold card numbers"),
    "personal-key": Counted("{n} example holds a password or key", "{n} examples hold passwords or keys"),
    "marks": Counted("{n} example holds signs of a chat template: {marks}", "{n} examples hold signs of a chat template: {marks}"),
    "left-out": Counted("{n} row could not be used", "{n} rows could not be used"),
}


def problem(rule: str, count: int, facts: dict) -> str:
    """A kind of problem in one sentence."""
    return PROBLEMS[rule](count, **facts)


def example(number: int, messages: list[dict], held: bool) -> str:
    """One example in a breath, for a screen reader."""
    said = " ".join(f"{ROLES[m.get('role', 'text')]()}: {m.get('content', '')}" for m in messages if m.get("role", "text") in ROLES)
    return DATA_EXAMPLE_SAID(number=number, said=said[:400] + (f" ({DATA_HELD_TAG()})" if held else ""))


ROLES = {"user": Phrase("Question"), "assistant": Phrase("Answer"), "system": Phrase("Instruction"), "text": Phrase("Text")}

# --- model --------------------------------------------------------------------------------------

MODEL_HEAD = Phrase("Which model should learn it?")
MODEL_INTRO = Phrase("Larger models know more, and take longer to teach.")
MODEL_NONE = Phrase("There is no model in the library yet. Fetch the starter model on the Start page.")
MODEL_BRING = Phrase("Bring another model")
MODEL_BRING_HINT = Phrase("org/name on the Hugging Face Hub, a model folder, or a GGUF file")
MODEL_BRING_HELP = Phrase("Its files are checked and put into the library. A GGUF file is unpacked; the original, where there is one, is better.")
MODEL_BRING_DO = Phrase("Bring it")
MODEL_BRING_BROWSE = Phrase("Choose a folder …")
MODEL_BRING_WRONG = Phrase("“{text}” is neither a name on the Hub, like org/name, nor a model folder or a GGUF file on this computer.")
MODEL_BRING_PICKLE = Phrase("{name} could run a program when it is opened, so it is not opened. Get the model as safetensors.")
MODEL_BRING_THERE = Phrase("A model named “{name}” is in the library already.")
MODEL_BRING_COMING = Phrase("{name} is on its way; the queue shows how far it is.")
MODEL_BRING_TITLE = Phrase("Bring {name}")
FIT = {"well": Phrase("fits well"), "tight": Phrase("tight"), "big": Phrase("too big"), "no": Phrase("cannot be taught")}
FIT_MARKS = {"well": "✓", "tight": "!", "big": "✗", "no": "✗"}
FIT_WELL = Phrase("Needs about {need}; {free} of memory are free.")
FIT_TIGHT = Phrase("Needs about {need} of the {free} that are free. Close other programs first.")
FIT_BIG = Phrase("Needs about {need}; only {free} of memory are free.")
FIT_NO_TEMPLATE = Phrase("It has no chat template: it can only continue texts.")
MODEL_FACTS = Phrase("{parameters} parameters · {size} · {kind}")

# --- plan ---------------------------------------------------------------------------------------

PLAN_HEAD = Phrase("How thoroughly?")
PLAN_NAME = Phrase("Name of the skill")
PLAN_NAME_HELP = Phrase("The adapter will be called this in the library.")
PLAN_NAME_HINT = Phrase("e.g. Shop answers")
PRESETS = {"quick": Phrase("Quick check"), "balanced": Phrase("Balanced"), "best": Phrase("Best")}
PRESET_HELP = {"quick": Phrase("Does it work at all? One short look at up to 200 examples."),
               "balanced": Phrase("The right choice for most: every example three times."),
               "best": Phrase("Up to five times, larger capacity; stops when it gets no better.")}
PLAN_MEASURING = Phrase("measuring …")
PLAN_AFTER = Phrase("The price stands here as soon as examples and model are chosen.")
PLAN_NO_PRICE = Phrase("The price could not be measured: {why}")
PRICE = Phrase("{time} · {memory} · {passes}")
OF_MEMORY = Phrase("{used} of {free} GB memory")
PRICE_TIME = Phrase("about {amount} ± {error}")
PRICE_CARDS = Phrase("{memory} on each of {n} graphics cards")
PRICE_PASSES = Counted("{n} pass over {examples}", "{n} passes over {examples}")
PRICE_PART = Phrase("{seen} of {examples}, once")
EXAMPLES = Counted("{n} example", "{n} examples")
PRICE_SHORTENED = Phrase("stops after 5 minutes, having seen {share} of the examples")
PLAN_PROMPTS = Phrase("Pinned questions")
PLAN_PROMPTS_HELP = Phrase("One a line. They are answered again and again while it learns, so that you can hear the change.")
PLAN_ADVANCED_NONE = Phrase("Advanced – as the preset says")
PLAN_ADVANCED_COUNT = Counted("Advanced – {n} setting differs from the preset", "Advanced – {n} settings differ from the preset")
PLAN_SPEC_FORM = Phrase("All settings of the training")
PLAN_METHOD_MORE = Phrase("All settings of the method")
PLAN_METHOD_CARDS = Phrase("How the skill is stored: {method}")
PLAN_METHOD_CARDS_HELP = Phrase("LoRA is right for almost everything. The others are for those who know why.")
PLAN_METHOD_GOOD = Phrase("Good for: {what}")
PLAN_METHOD_CANNOT = Phrase("But: {what}")
PLAN_METHOD_OTHER = Phrase("Another method")
PLAN_METHOD_OTHER_HELP = Phrase("All methods that the engine knows, by name.")
PLAN_METHOD_ON_CARD = Phrase("– one of the cards above –")
LORA_GOOD = Phrase("almost everything; small files, quick to teach, can be mixed and baked in.")
LORA_CANNOT = Phrase("nothing speaks against it.")
DORA_GOOD = Phrase("a little more out of the same file size; can be mixed and baked in.")
DORA_CANNOT = Phrase("takes longer to teach.")
LOHA_GOOD = Phrase("more variety than LoRA at the same capacity; can be mixed and baked in.")
LOHA_CANNOT = Phrase("slower to teach, and made into a LoRA only with a small error.")
OFT_GOOD = Phrase("keeping what the model knew: it turns, it does not add.")
OFT_CANNOT = Phrase("in a mix its place in the order counts; slower to teach.")
IA3_GOOD = Phrase("a tone of voice in the smallest file there is.")
IA3_CANNOT = Phrase("holds hardly any facts.")
PREFIX_GOOD = Phrase("a task that is always the same; the model itself stays as it is.")
PREFIX_CANNOT = Phrase("cannot be baked in, nor mixed with the others.")
PLAN_METHOD_FORM = Phrase("Method: {method}")
PLAN_RESET = Phrase("Back to the preset")
PLAN_START = Phrase("Start teaching")
PLAN_STARTED = Phrase("“{name}” is in the queue.")
LONG_WARNING = Phrase("This takes more than 8 hours here. Quick check shows in minutes whether it is worth it.")
MEMORY_WARNING = Phrase("This needs more memory than is free. Close other programs, or choose a smaller model.")
REMEDY_CHECKPOINTING = Phrase("Compute twice, remember less")
REMEDY_PRECISION = Phrase("Choose the number format by measurement")
REMEDY_BITS = Phrase("Take the model in 4 bit")
REMEDY_LENGTH = Phrase("Leave out examples over {n} tokens")

# --- learning speed ------------------------------------------------------------------------------

FIND = Phrase("Find learning speed")
FIND_HELP = Phrase("Tries on your examples how fast it may learn, in a minute or a few. Nothing else is changed, and it can be taken back.")
FIND_TITLE = Phrase("Learning speed")
FIND_STOP = Phrase("Stop searching")
FIND_RUNNING = Phrase("It learns faster and faster, until the error explodes …")
FIND_FOUND = Phrase("{speed}: a tenth of {lowest}, the speed at which the error was lowest.")
FIND_NOTHING = Phrase("No speed made the error smaller. Look at the examples, or at the method.")
FIND_STOPPED = Phrase("Stopped. Nothing was changed.")
FIND_DONE = Phrase("The learning speed is now {speed}.")
FIND_BACK = Phrase("Back to what it was")
FIND_USE = Phrase("Use this speed")
FIND_AXIS = Phrase("Learning speed")
FIND_CURVE = Phrase("Error over learning speed; 1 is the untaught model")
FIND_POINTS = Phrase("{n} speeds were tried; the lowest error was {low} of the untaught model's.")

# --- form ---------------------------------------------------------------------------------------

FORM_NO_NUMBER = Phrase("“{text}” is not a number.")
FORM_NO_WHOLE = Phrase("“{text}” is not a whole number.")
FORM_LOW = Phrase("At least {low}.")
FORM_HIGH = Phrase("At most {high}.")
FORM_NEEDED = Phrase("This is needed.")
FORM_NO_TABLE = Phrase("Write it as {{\"name\": value}}.")
FORM_AUTO = Phrase("by rule")
FORM_DEFAULT = Phrase("normally {value}")

# --- train --------------------------------------------------------------------------------------

TRAIN_HEAD = Phrase("Teaching “{name}”")
TRAIN_CURVE = Phrase("Error, lower is better")
TRAIN_SHOW_TABLE = Phrase("Show as a table")
TRAIN_CURVE_KIND = Phrase("How the curve is drawn")
TRAIN_CURVE_KINDS = {"smooth": Phrase("Smooth"), "raw": Phrase("Every step"), "log": Phrase("Small differences (log)")}
TRAIN_LEARNED = Phrase("on the examples it learns")
TRAIN_UNSEEN = Phrase("on unseen examples")
TRAIN_STEP = Phrase("Step")
TRAIN_STEPS = Phrase("Step {step} of {steps}")
TRAIN_BEST = Phrase("best: step {step}")
TRAIN_SPEED = Phrase("{n} tokens/s")
TRAIN_MEMORY = Phrase("{size} memory")
TRAIN_SEEN = Phrase("{n} passes so far")
TRAIN_SAMPLES = Phrase("How it answers")
TRAIN_SAMPLES_NONE = Phrase("Its answers to your pinned questions appear here while it learns.")
TRAIN_SAMPLES_AT = Phrase("Answers at step {step}")
TRAIN_SAMPLES_BEFORE = Phrase("Answers before it learned anything")
TRAIN_SAMPLES_SLIDER = Phrase("Time: move back to hear how it answered earlier")
TRAIN_PAUSE = Phrase("Pause")
TRAIN_RESUME = Phrase("Continue")
TRAIN_STOP = Phrase("Stop and keep")
TRAIN_STOP_HELP = Phrase("Ends now and keeps what was learned so far.")
TRAIN_MORE = Phrase("Add time")
TRAIN_MORE_HELP = Phrase("Lets it see your examples more often than planned.")
TRAIN_MORE_PASSES = Counted("{n} pass more", "{n} passes more")
TRAIN_MORE_PRICE = Phrase("{passes} – about {amount}")
TRAIN_MORE_SAID = Phrase("Added: {what}.")
TRAIN_MORE_LATER = Phrase("Added as soon as it goes on: {what}.")
TRAIN_SLOWER = Phrase("Go on from step {step} with half the learning speed")
TRAIN_SLOWER_ANEW = Phrase("Begin again with half the learning speed")
TRAIN_SLOWER_HELP = Phrase("Nothing good is lost: what was learned up to there is kept.")
TRAIN_SAME_AGAIN = Phrase("It would end in the same way: see above.")
TRAIN_SAMPLE = Phrase("Sample now")
TRAIN_SAMPLE_HELP = Phrase("Answers the pinned questions at the next step.")
TRAIN_SAFE = Phrase("Safe to close: resumes at step {step}.")
TRAIN_NOT_SAFE = Phrase("The first save comes soon; closing before it begins anew.")
TRAIN_PREPARING = Phrase("Getting ready …")
TRAIN_WAITING = Phrase("Waiting for its turn: something else runs in the queue.")
TRAIN_PAUSED = Phrase("Paused. It goes on at step {step} when you continue it.")
TRAIN_PAUSED_START = Phrase("Paused before it began.")
TRAIN_INTERRUPTED = Phrase("It was interrupted. Nothing that was saved is lost: it resumes at step {step}.")
TRAIN_CANCELLED = Phrase("Stopped. It can go on at step {step}.")
TRAIN_STOPPING = Phrase("Stopping after this step …")
TRAIN_FINISHED = Phrase("Done. The best state was kept.")
TRAIN_SAVED = Phrase("saved")
TRAIN_POINTS = Phrase("Error at step {step}: {learned} on the examples it learns, {unseen} on unseen ones.")
TRAIN_NO_POINTS = Phrase("No numbers yet.")
TABLE_COLUMNS = (Phrase("Step"), Phrase("Error on learned examples"), Phrase("Error on unseen examples"), Phrase("What happened"))

# --- verdict ------------------------------------------------------------------------------------

VERDICT_WAITING = Phrase("It has just begun; the first numbers say little.")
VERDICT_EARLY = Phrase("Too early to tell.")
VERDICT_LEARNING = Phrase("It is learning your examples; the first test on unseen ones is still to come.")
VERDICT_IMPROVING = Phrase("Still improving on unseen examples: {share} less error than before.")
VERDICT_FLAT = Phrase("It has stopped getting better, at {share} less error on unseen examples than before.")
VERDICT_BY_HEART = Phrase("It now learns your examples by heart; on unseen ones it was better {best}.")
VERDICT_WORSE = Phrase("It is getting worse on unseen examples; it was better {best}.")
VERDICT_NO_BETTER = Phrase("It is no better on unseen examples than the untaught model.")
VERDICT_BROKEN = Phrase("The numbers have gone wrong: the error is not a number any more.")
ADVICE_FLAT = Phrase("You may stop; more passes will hardly help.")
ADVICE_BY_HEART = Phrase("Nothing is lost: the best state is kept. More, and more varied, examples help.")
ADVICE_WORSE = Phrase("Nothing is lost: the best state is kept. A lower learning speed may help.")
ADVICE_NO_BETTER = Phrase("Look at the examples: do the held-back ones ask for something the others teach?")
ADVICE_BROKEN = Phrase("Start again with a lower learning speed.")
TRAIN_EVIDENCE = Phrase("Show step {step} on the curve")
AT_STEP = Phrase("at step {step}")
EARLIER = Phrase("earlier")


def step_or_earlier(step: float | None) -> str:
    return EARLIER() if step is None else AT_STEP(step=round(step))


# --- review -------------------------------------------------------------------------------------

REVIEW_HEAD = Phrase("Is “{name}” better?")
REVIEW_BETTER = Phrase("Yes: {share} less error on {rows} it has never seen.")
REVIEW_WORSE = Phrase("No: the error on {rows} it has never seen did not fall.")
REVIEW_NO_UNSEEN = Phrase("No examples were held back, so only your own ears can tell.")
REVIEW_BEFORE = Phrase("Before")
REVIEW_AFTER = Phrase("After")
REVIEW_ERROR = Phrase("Error on unseen examples")
REVIEW_ANSWERS = Phrase("The same questions, before and after")
REVIEW_NO_ANSWERS = Phrase("No questions were pinned. You can ask your own in Try.")
REVIEW_FACTS = Phrase("Best state from step {best} of {steps} · {rows} learned, {held} held back · {time}")
REVIEW_KEEP = Phrase("Keep and try it")
REVIEW_KEEP_HELP = Phrase("Puts the adapter into the stack and opens Try.")
REVIEW_MORE = Phrase("Train more")
REVIEW_MORE_HELP = Phrase("Back to the plan with twice the passes.")
REVIEW_DISCARD = Phrase("Discard")
REVIEW_DISCARD_HELP = Phrase("Deletes the adapter.")
REVIEW_DISCARD_SURE = Phrase("Really delete it")
REVIEW_DISCARDED = Phrase("“{name}” was deleted.")
REVIEW_KEPT = Phrase("“{name}” is in the stack.")
REVIEW_GONE = Phrase("The adapter's folder is no longer there.")
REVIEW_PICK = Phrase("Training")
REVIEW_LOWER = Phrase("Try at lower strength")
REVIEW_LOWER_HELP = Phrase("Puts the adapter into the stack at {strength} and opens Try.")
REVIEW_COMPARE = Phrase("Compare on unseen examples")
REVIEW_COMPARE_HELP = Phrase("Tests every held-back example with and without the skill, and lets both answer some of them.")
REVIEW_COMPARING = Phrase("Comparing, example by example …")
REVIEW_OUTCOMES = Phrase("Better in {wins}, the same in {same}, worse in {losses} of the examples it has never seen.")
REVIEW_INTERVAL_NARROW = Phrase("On other examples of this kind, expect about {about} less error.")
REVIEW_INTERVAL = Phrase("On other examples of this kind, expect {low} to {high} less error.")
REVIEW_INTERVAL_OPEN = Phrase("These examples are too few, or too different, to promise an improvement on others.")
REVIEW_LOWER_BETTER = Phrase("At a strength of {strength} it is better still: error {error}.")
REVIEW_FORGOTTEN = Phrase("It has forgotten something: on {rows} general questions the error rose from {before} to {after}.")
REVIEW_NOT_FORGOTTEN = Phrase("Nothing forgotten: on {rows} general questions the error went from {before} to {after}.")
REVIEW_ROWS = Phrase("Unseen examples, the worst first")
REVIEW_ROWS_MORE = Phrase("Show all {n}")
REVIEW_WANTED = Phrase("Wanted: {answer}")
REVIEW_ROW_ERRORS = Phrase("error {before} → {after}")
REVIEW_OUTCOME = {"win": Phrase("better"), "same": Phrase("the same"), "loss": Phrase("worse")}
VOTE_HEAD = Phrase("Blind vote: which answer is better?")
VOTE_HELP = Phrase("You are not told which one is taught. Five pairs, then you know.")
VOTE_A = Phrase("Answer A")
VOTE_B = Phrase("Answer B")
VOTE_SAME = Phrase("No difference")
VOTE_PLACE = Phrase("{k} of {n}")
VOTE_RESULT = Phrase("You chose the taught model {taught} of {n} times, and saw no difference {same} times.")
