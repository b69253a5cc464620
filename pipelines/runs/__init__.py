"""A whole run: made in this process, forecast, exported, shown on a contact sheet."""
