"""What goes wrong outside the program: kills, full disks, damaged parts, lack of memory, odd surroundings."""
