"""What a test writes: tables, pictures, a report."""
