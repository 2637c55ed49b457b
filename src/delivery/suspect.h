/*
 * Suspects: events at which workers crash.
 */
#ifndef OUTBOX_SUSPECT_H
#define OUTBOX_SUSPECT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* At the start of a worker: what is known of its predecessors' crashes. */
extern void outbox_suspect_start(Oid database, int64 epoch);

/* From here to the next call, or to outbox_suspect_nobody(), a crash is on account of this event, for this subscription. */
extern void outbox_suspect_handle(int32 subscription, const pg_uuid_t *event_id);
extern void outbox_suspect_nobody(void);

/* It goes down as a crash: an error that the process cannot survive. */
extern void outbox_suspect_blame(void);

/* Must this event not be sent to this subscription, because workers have crashed at it? */
extern bool outbox_suspect_condemned(int32 subscription, const pg_uuid_t *event_id);

/* Only one request may be under way, so that a crash is on account of that one. */
extern bool outbox_suspect_careful(TimestampTz now);

/* What is long ago is forgotten. */
extern void outbox_suspect_forget(TimestampTz now);

#endif							/* OUTBOX_SUSPECT_H */
