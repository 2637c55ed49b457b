/*
 * Sending.
 *
 * No transaction is open here.  A request pins the chunk its body lies in and the configuration it was made with, until it has ended; a body that is more than one payload is its own.
 */
#include "postgres.h"

#include <time.h>

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "common/pg_prng.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "dispatch.h"
#include "envelope.h"
#include "fault.h"
#include "http.h"
#include "ledger.h"
#include "recorder.h"
#include "sender.h"
#include "settings.h"
#include "suspect.h"
#include "utf8.h"
#include "work.h"

#define SEND_AT_ONCE 256		/* requests started before the loop looks at the network again */
#define NETWORK_BUDGET_US 20000
#define WORK_BUDGET_US 10000	/* for outcomes, and again for new requests: large batches take their time */

typedef struct OutboxRequest
{
	OutboxExchange *exchange;
	OutboxChunk *chunk;			/* pinned: the body is in it … */
	char	   *body;			/* … unless it is this (malloc'd) */
	int			n;
	OutboxItem *items[FLEXIBLE_ARRAY_MEMBER];
} OutboxRequest;

static OutboxWork *const work = &outbox_work;
static OutboxHttp *http;
static OutboxEnvelope *envelope;
static char *source;			/* CloudEvents source */
static OutboxItem **gathered;	/* the items of the request that is being made */
static int	n_gathered;
static int	gathered_room = 128;
static OutboxRequest *making = NULL;	/* theirs, until it is on its way */

static char *
make_source(void)
{
	StringInfoData urn;
	char	   *name = get_database_name(MyDatabaseId);
	size_t		size = strlen(name);
	bool		sure;

	name = outbox_utf8(name, &size, &sure);
	initStringInfo(&urn);
	appendStringInfoString(&urn, "urn:outbox:");
	for (const unsigned char *c = (const unsigned char *) name; *c != '\0'; c++)
	{
		if ((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-._~", *c) != NULL)
			appendStringInfoChar(&urn, *c);
		else
			appendStringInfo(&urn, "%%%02X", *c);
	}
	return MemoryContextStrdup(TopMemoryContext, urn.data);
}

static void
free_request(OutboxRequest *request)
{
	OutboxExchange *exchange = request->exchange;

	if (exchange != NULL && exchange->headers != NULL)
		outbox_message_headers_free(exchange->headers);
	outbox_exchange_free(exchange);
	if (request->chunk != NULL)
		outbox_chunk_unpin(request->chunk);
	free(request->body);
	pfree(request);
}

static void
end_request(OutboxRequest *request)
{
	OutboxExchange *exchange = request->exchange;
	TimestampTz now = GetCurrentTimestamp();

	if (exchange->outcome == OUTBOX_DELIVERED)
		work->database->status.delivered += request->n;
	else
		work->database->status.failed += request->n;
	outbox_dispatch_finished(request->items, request->n, exchange, now);
	work->moved = true;
	if ((work->noted_at == 0 || work->noted_at > now) && outbox_ledger_pending() > 0)
		work->noted_at = now;
	free_request(request);
}

/* An attempt that never got to the network. */
static void
end_unsent(OutboxRequest *request, OutboxOutcome outcome, const char *why)
{
	making = NULL;
	n_gathered = 0;
	request->exchange->outcome = outcome;
	request->exchange->retry_after = -1;
	strlcpy(request->exchange->error, why, sizeof(request->exchange->error));
	end_request(request);
}

static void
fill_message(OutboxMessage *message, const OutboxLoggedEvent *logged)
{
	const int64 to_unix = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	OUTBOX_FAULT_EVENT("send-event", logged->event.type);
	message->format = OUTBOX_FORMAT_BINARY;
	memcpy(message->id, logged->id_text, OUTBOX_ID_TEXT);
	message->source = outbox_source[0] != '\0' ? outbox_source : source;
	message->type = logged->type;
	message->key = logged->key;
	message->created_at = logged->event.created_at + to_unix;
	message->content_type = logged->content_type;
	message->traceparent = logged->event.traceparent;
	message->headers = logged->headers;
	message->n_headers = logged->n_headers;
	message->body = logged->body;
	message->size = logged->body_size;
	message->json = logged->event.json;
	message->utf8 = logged->utf8;
}

/* ---- envelopes ---- */

static void
fail_for_memory(void)
{
	ereport(FATAL,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory")));
}

static OutboxFilling
add_to_envelope(const OutboxItem *item, Size limit, const char **error)
{
	OutboxFilling filling;
	OutboxMessage message;

	if (item->logged->event.unreadable)
	{
		*error = "the event cannot be read";
		return OUTBOX_UNFIT;
	}
	outbox_suspect_handle(item->lane->subscription->id, &item->id);
	fill_message(&message, item->logged);
	filling = outbox_envelope_add(envelope, &message, limit, error);
	if (filling == OUTBOX_NO_MEMORY)
		fail_for_memory();
	return filling;
}

/* An event's own headers are the request's: only events with the same ones can be in it together. */
static bool
same_headers(const OutboxItem *a, const OutboxItem *b)
{
	if (a->logged->n_headers != b->logged->n_headers)
		return false;
	for (int i = 0; i < a->logged->n_headers; i++)
	{
		if (strcmp(a->logged->headers[i].name, b->logged->headers[i].name) != 0 ||
			strcmp(a->logged->headers[i].value, b->logged->headers[i].value) != 0)
			return false;
	}
	return true;
}

/* Adds to the request of `first`, whose event is in the envelope, what may go with it: as many items as there are and the batch has room for. */
static void
gather(OutboxItem *first, TimestampTz now)
{
	int			most = outbox_suspect_careful(now) ? 1 : outbox_batch_most(first);
	OutboxItem *item = first;
	const char *error;

	while (n_gathered < most && (item = outbox_batch_candidate(item)) != NULL)
	{
		most = Min(most, outbox_batch_most(item));
		if (n_gathered >= most || item->replayed != first->replayed || !same_headers(first, item))
			return;
		if (n_gathered == gathered_room)
		{
			gathered = repalloc(gathered, gathered_room * 4 * sizeof(OutboxItem *));
			gathered_room *= 4;
		}
		if (outbox_suspect_condemned(first->subscription->id, &item->id) || add_to_envelope(item, first->subscription->batch_bytes, &error) != OUTBOX_FILLED)
			return;
		outbox_item_fly(item, now);
		gathered[n_gathered++] = item;
	}
}

/* ---- requests ---- */

/* The request of the items that were gathered. */
static OutboxRequest *
make_request(void)
{
	Size		size = offsetof(OutboxRequest, items) + n_gathered * sizeof(OutboxItem *);
	OutboxRequest *request = making = MemoryContextAllocZero(TopMemoryContext, size);

	request->exchange = outbox_exchange_create();
	if (request->exchange == NULL)
		fail_for_memory();
	request->n = n_gathered;
	memcpy(request->items, gathered, n_gathered * sizeof(OutboxItem *));
	request->chunk = outbox_chunk_pin(gathered[0]->chunk);
	request->exchange->endpoint = &gathered[0]->subscription->endpoint;
	request->exchange->owner = request;
	return request;
}

static void
send_item(OutboxItem *item, TimestampTz now)
{
	OutboxSubscription *subscription = item->subscription;
	OutboxMessage message = {0};
	uint64		span = pg_prng_uint64(&pg_global_prng_state);
	OutboxRequest *request;
	const char *error = NULL;

	gathered[0] = item;
	n_gathered = 1;
	outbox_suspect_handle(subscription->id, &item->id);
	if (outbox_suspect_condemned(subscription->id, &item->id))
	{
		outbox_lane_enlist(item->lane);
		end_unsent(make_request(), OUTBOX_INTERNAL, "delivery workers ended when they handled this event");
		return;
	}
	if (!item->logged->event.unreadable && subscription->format != OUTBOX_FORMAT_BINARY)
	{
		outbox_envelope_begin(envelope, subscription->format == OUTBOX_FORMAT_BATCH);
		if (add_to_envelope(item, subscription->batch_bytes, &error) == OUTBOX_FILLED && subscription->format == OUTBOX_FORMAT_BATCH)
			gather(item, now);
		if (n_gathered > 1)
			outbox_suspect_nobody();
	}
	OUTBOX_FAULT("send-before-request");
	outbox_lane_enlist(item->lane);

	request = make_request();
	if (item->logged->event.unreadable)
	{
		end_unsent(request, OUTBOX_INTERNAL, "the event cannot be read");
		return;
	}
	if (error != NULL)
	{
		end_unsent(request, OUTBOX_BAD_REQUEST, error);
		return;
	}
	fill_message(&message, item->logged);
	message.fixed = subscription->headers;
	message.n_fixed = subscription->n_headers;
	message.replay = item->replayed;
	if (subscription->format != OUTBOX_FORMAT_BINARY)
	{
		message.format = subscription->format;
		message.body = request->body = outbox_envelope_end(envelope, &message.size, message.id);
		if (request->body == NULL)
			fail_for_memory();
	}
	request->exchange->body = message.body;
	request->exchange->size = message.size;
	request->exchange->headers = outbox_message_headers(&message, subscription->signers, subscription->n_signers,
														(int64) time(NULL), (unsigned char *) &span, &error);
	if (request->exchange->headers == NULL && error == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("A request could not be written or signed.")));
	if (request->exchange->headers == NULL)
		end_unsent(request, OUTBOX_BAD_REQUEST, error);
	else
	{
		OUTBOX_FAULT("send-before-start");
		making = NULL;
		outbox_http_start(http, request->exchange);
	}
}

/* An error on the way to the network is the matter of what was to go there, and of nobody else. */
static void
start_request(OutboxItem *item, TimestampTz now)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		send_item(item, now);
	}
	PG_CATCH();
	{
		OutboxExchange exchange = {.outcome = OUTBOX_INTERNAL, .retry_after = -1};
		int			code = geterrcode();

		if (n_gathered == 0)
			PG_RE_THROW();		/* it was over already */
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		if (making != NULL)
			free_request(making);
		making = NULL;
		snprintf(exchange.error, sizeof(exchange.error), "the request could not be made (SQLSTATE %s)", unpack_sql_state(code));
		outbox_dispatch_mishap(gathered, n_gathered, &exchange, code == ERRCODE_OUT_OF_MEMORY, now);
	}
	PG_END_TRY();
	n_gathered = 0;
}

static bool
is_used_up(TimestampTz begin_at)
{
	TimestampTz now = GetCurrentTimestamp();

	return now < begin_at || now - begin_at > WORK_BUDGET_US;
}

static void
begin_judging(const OutboxRequest *request)
{
	const OutboxItem *item = request->items[0];

	if (request->n == 1)
		outbox_suspect_handle(item->subscription->id, &item->id);
	OUTBOX_FAULT_EVENT("judge-before", item->logged->event.type);
}

static int
most_in_flight(void)
{
	return Min(outbox_max_in_flight, outbox_http_capacity(http));
}

static bool
may_start(TimestampTz now)
{
	if (outbox_suspect_careful(now) && outbox_dispatch_in_flight() > 0)
		return false;
	return !outbox_recorder_overdue();
}

/* Outcomes, new requests in the places that became free, network events: so nothing that is to be sent waits for what is recorded. True: nothing happened. */
bool
outbox_sender_step(TimestampTz now)
{
	OutboxExchange *exchange;
	OutboxItem *item;
	TimestampTz begin_at;
	int			started = 0;
	int			ended = 0;

	work->changing = true;
	begin_at = GetCurrentTimestamp();
	while ((ended == 0 || !is_used_up(begin_at)) && (exchange = outbox_http_finished(http)) != NULL)
	{
		begin_judging(exchange->owner);
		end_request(exchange->owner);
		outbox_suspect_nobody();
		OUTBOX_FAULT("judge-after");
		ended++;
	}
	outbox_item_due(now);
	outbox_lane_wake(now);
	begin_at = GetCurrentTimestamp();
	while (started < SEND_AT_ONCE && (started == 0 || !is_used_up(begin_at)) && may_start(now) && (item = outbox_dispatch_next(most_in_flight(), now)) != NULL)
	{
		start_request(item, now);
		if (!outbox_suspect_careful(now))
			outbox_suspect_nobody();
		OUTBOX_FAULT("send-after-start");
		started++;
	}
	outbox_http_work(http, NETWORK_BUDGET_US);
	work->changing = false;
	return started == 0 && ended == 0;
}

void
outbox_sender_start(void)
{
	OutboxHttpOptions options = {.max_connections = outbox_max_in_flight, .user_agent = "outbox/" OUTBOX_VERSION};

	StartTransactionCommand();
	source = make_source();
	CommitTransactionCommand();
	gathered = MemoryContextAlloc(TopMemoryContext, gathered_room * sizeof(OutboxItem *));
	envelope = outbox_envelope_create();
	http = outbox_http_create(&options);
	if (http == NULL || envelope == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not set up the HTTP client")));
}

int
outbox_sender_descriptor(void)
{
	return outbox_http_descriptor(http);
}

long
outbox_sender_timeout(void)
{
	return outbox_http_timeout(http);
}

bool
outbox_sender_can_send(void)
{
	return outbox_turns_wait(most_in_flight()) && may_start(GetCurrentTimestamp());
}
