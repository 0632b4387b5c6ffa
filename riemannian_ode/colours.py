"""The colours of all figures."""

# Okabe and Ito's palette, which is safe for all kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
BASE_COLOUR, LITE_COLOUR = BLUE, VERMILION
