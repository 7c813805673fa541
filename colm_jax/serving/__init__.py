"""A team behind an API: `service` owns the devices, `app` speaks HTTP, `page` shows who wrote what."""
