/*
 * Scheduled events: kept apart from the log until they are due.
 */
#ifndef OUTBOX_SCHEDULE_H
#define OUTBOX_SCHEDULE_H

#include "event_log.h"

/* Writes n checked events that have a deliver_at and an id; at commit the worker hears of the earliest. */
extern void outbox_schedule_append(const OutboxNewEvent *events, int n);

/* What a move did. */
typedef struct OutboxMove
{
	int			moved;			/* so many events are in the log now */
	bool		busy;			/* the table is locked: nothing was done */
	bool		skipped;		/* somebody has locked events that are due: they are in none of these numbers */
	int			failed;			/* so many cannot be moved; the first are reported */
	TimestampTz next;			/* no other event that this transaction can see is due earlier; DT_NOEND: none waits */
} OutboxMove;

/*
 * Moves events that are due into the log, in the current transaction: those with a deliver_at from `from` to `until`, in that order, until the budget (microseconds) is used
 * up.  Only events of this installation: what a dump, or replication, brought from another one waits for start().  Never waits for anybody who has locked one, or the table.  careful: an event that
 * raises is left where it is, and the others go on.  READ COMMITTED only.
 */
extern PGDLLEXPORT OutboxMove outbox_schedule_move(TimestampTz from, TimestampTz until, int64 budget, bool careful);

#endif							/* OUTBOX_SCHEDULE_H */
