"""The page of `dmvae serve`: a run's latents, images, samples and curves, interactive in a browser.

folder.py says what the page may read, views.py what it shows, and server.py speaks HTTP; page.html, page.js and
page.css run in the browser.
"""
