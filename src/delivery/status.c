/*
 * Status: what the worker says of each subscription to whoever asks, through shared memory.
 *
 * Views read it at any moment, beside the worker: what is more than a word is written and read under the database's lock.  It is for people and for health(): nothing is decided by it.
 */
#include "postgres.h"

#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "event_id.h"
#include "status.h"

void
outbox_status_breaker(OutboxDatabase *database, OutboxLane *lane)
{
	TimestampTz at = lane->breaker.state == OUTBOX_BREAKER_CLOSED ? 0 : lane->breaker.probe_at;

	if (lane->status == NULL || (lane->status->breaker_open_until == at && lane->status->next_probe_at == at))
		return;
	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	lane->status->breaker_open_until = lane->status->next_probe_at = at;
	LWLockRelease(&database->lock);
}

void
outbox_status_exchange(OutboxDatabase *database, OutboxLane *lane, const OutboxExchange *exchange, TimestampTz now)
{
	if (lane->status == NULL)
		return;
	if (exchange->outcome == OUTBOX_DELIVERED)
		lane->status->last_success_at = now;
	else
	{
		LWLockAcquire(&database->lock, LW_EXCLUSIVE);
		lane->status->last_error_at = now;
		strlcpy(lane->status->last_error, exchange->error, sizeof(lane->status->last_error));
		LWLockRelease(&database->lock);
	}
}

/* When the oldest event that waits in a lane entered the log (a scheduled one, when it was due); 0: none waits. */
static TimestampTz
oldest_in_log(OutboxLane *lane)
{
	if (!dlist_is_empty(&lane->outstanding))
	{
		const OutboxItem *first = dlist_container(OutboxItem, outstanding, lane->outstanding.head.next);

		return outbox_event_id_time(&first->log_id);
	}
	if (lane->at_head || lane->position.base == NULL)
		return 0;
	if (lane->position.partial)
		return outbox_event_id_time(&lane->position.after);
	return lane->position.base->at;
}

/* What an exception adds to the state of its lane. */
static void
publish_exception(OutboxItem *item)
{
	OutboxLaneStatus *status = item->lane->status;
	TimestampTz at = outbox_event_id_time(&item->log_id);

	if (status == NULL || item->state == OUTBOX_ITEM_HELD)
		return;
	/* who gets old events once more does not lag behind */
	if (!item->replayed && (status->oldest_at == 0 || at < status->oldest_at))
		status->oldest_at = at;
	if (item->keyed && item->state == OUTBOX_ITEM_RETRY)
		status->blocked_keys++;
}

void
outbox_status_publish(OutboxDatabase *database)
{
	List	   *lanes = outbox_lane_all();
	ListCell   *cell;

	LWLockAcquire(&database->lock, LW_EXCLUSIVE);
	foreach(cell, lanes)
	{
		OutboxLane *lane = lfirst(cell);
		OutboxLaneStatus *status = lane->status;

		if (status == NULL)
			continue;
		status->in_flight = lane->in_flight;
		status->exceptions = lane->n_rows;
		status->blocked_keys = 0;
		status->at_head = lane->at_head && lane->n_outstanding == 0;
		status->offset = outbox_lane_offset(lane);
		status->oldest_at = oldest_in_log(lane);
	}
	outbox_item_each_exception(publish_exception);
	LWLockRelease(&database->lock);
}
