"""The edges: FITS, Avro, SQLite, Kafka and pictures in and out; never computes."""
