"""The site's side: its Flower app, its rows, its budget and its memory."""
