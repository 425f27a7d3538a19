"""Doors: everything that reads or writes files of other people. Foreign conventions die here."""
