"""Words of the window's frame: menus, library, stack, inspector, activity."""

from studio.core.text import Counted, Phrase

# notices
details = Phrase("Details")
hide_details = Phrase("Hide details")
copy = Phrase("Copy")
copied = Phrase("Copied.")
close = Phrase("Close this message")
notices = Phrase("Messages")
