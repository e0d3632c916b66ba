"""One small reader for each kind of file. Each makes a `engine.data.table.Table`; none holds a whole file that can be walked through."""
