"""Does what is shipped to operators load: units, images, manifests, sample settings, and the commands in them?"""
