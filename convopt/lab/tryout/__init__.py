"""Does any of it help on the reader's own data? Looks at them, plans within a budget, trains and answers."""
