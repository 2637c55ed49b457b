/*
 * Event ids: UUID version 7 (RFC 9562), strictly increasing within a database.
 *
 * The first 60 significant bits are a clock: 48 bits of Unix milliseconds, then 12 bits of fraction.
 * The clock lives in shared memory, one per database (bell.h), and every id takes the larger of "now"
 * and "one more than the last", so ids increase across all backends even when the system clock steps
 * back.  The last 62 bits are random.
 */
#ifndef OUTBOX_EVENT_ID_H
#define OUTBOX_EVENT_ID_H

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "utils/uuid.h"

/* The next id of this clock; also says which instant it took (microseconds, PostgreSQL epoch). */
extern PGDLLEXPORT void outbox_event_id_next(pg_atomic_uint64 *clock, pg_uuid_t *id, TimestampTz *now);

/* The 60 clock bits of an id. */
extern PGDLLEXPORT uint64 outbox_event_id_clock(const pg_uuid_t *id);

/* Is it a UUID of version 7 at all?  The time in any other would be nonsense. */
extern PGDLLEXPORT bool outbox_event_id_valid(const pg_uuid_t *id);

/* The lowest id with these clock bits. */
extern PGDLLEXPORT void outbox_event_id_lowest(uint64 clock, pg_uuid_t *id);

/* The instant in an id, to the millisecond, and the clock bits of an instant. */
extern PGDLLEXPORT TimestampTz outbox_event_id_time(const pg_uuid_t *id);
extern PGDLLEXPORT uint64 outbox_event_id_clock_at(TimestampTz at);

/* Moves a clock forward to at least `floor`; never back. */
extern PGDLLEXPORT void outbox_event_id_floor(pg_atomic_uint64 *clock, uint64 floor);

#endif							/* OUTBOX_EVENT_ID_H */
