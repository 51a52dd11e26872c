"""What is measured of the library itself: times, and what compilers make of it."""
