"""Cloud Storage's JSON API: buckets, objects with generations, uploads, downloads."""
