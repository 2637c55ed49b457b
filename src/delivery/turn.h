/*
 * One turn of the worker's loop: move what is due, tick, route, send, judge, record.
 */
#ifndef OUTBOX_TURN_H
#define OUTBOX_TURN_H

#include "bell.h"

/* Reads everything back and gets ready. Outside a transaction; raises. */
extern void outbox_turn_start(OutboxDatabase *database);

/* The descriptor that wakes the loop for network events. */
extern int	outbox_turn_descriptor(void);

/*
 * Does what there is to do without waiting.  reasons: OUTBOX_RING_*.  Returns the milliseconds until there may be more to do (-1: only when woken).  May raise: the
 * next turn then goes on where this one stopped, after a pause for what touches tables.
 */
extern long outbox_turn_run(uint32 reasons);

/* This database is no longer ours: not armed, or the extension is gone. */
extern bool outbox_turn_over(void);

/* Does somebody wait for what is recorded, or for the end of a request? */
extern bool outbox_turn_is_awaited(void);

/* Since this was last asked, by more than a second. */
extern bool outbox_turn_clock_went_back(void);

/* The configuration file was read again: there may be other keys for secrets. */
extern void outbox_turn_reloaded(void);

/* A turn raised (blameless: for want of memory).  Must the process end, because what it knows is half changed?  If not, the next turn may begin. */
extern bool outbox_turn_must_end(bool blameless);
extern void outbox_turn_failed(void);

/* Writes what is known to be done, so that the next worker repeats nothing but what is in flight. */
extern void outbox_turn_finish(void);

#endif							/* OUTBOX_TURN_H */
