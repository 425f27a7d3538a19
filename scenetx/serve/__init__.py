"""What a person looks at: the report page and (later) the viewer."""
