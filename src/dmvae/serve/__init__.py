"""The page of `dmvae serve`: a run's latents, images, samples and curves, to play with in a browser.

folder.py is what the page may read, views.py is what it shows, server.py is HTTP; page.html, page.js and page.css run
in the browser.
"""
