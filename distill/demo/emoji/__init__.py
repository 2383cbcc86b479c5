"""The demonstration teacher: a text-to-image model made from an emoji font and nothing downloaded.

It composes: one or two of the subjects it was trained on, at a named place and size, on a plain
colour or a drawn scene. It is trained in the exact format of Stable Diffusion 3, so everything that
distils, exports and serves it does the same for SD3-Medium.
"""
