/*
 * Sending.
 *
 * No transaction is open here.  A request pins the chunk its body lies in and the configuration it was made with, until it has ended.
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

#include "dispatch.h"
#include "http.h"
#include "ledger.h"
#include "recorder.h"
#include "sender.h"
#include "settings.h"
#include "work.h"

#define SEND_AT_ONCE 256		/* requests started before the loop looks at the network again */
#define NETWORK_BUDGET_US 20000

typedef struct OutboxRequest
{
	OutboxItem *item;
	OutboxExchange *exchange;
	OutboxChunk *chunk;			/* pinned: the body is in it */
} OutboxRequest;

static OutboxWork *const work = &outbox_work;
static OutboxHttp *http;
static char *source;			/* CloudEvents source */

static char *
make_source(void)
{
	StringInfoData urn;
	const char *name = get_database_name(MyDatabaseId);

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
end_request(OutboxRequest *request)
{
	OutboxExchange *exchange = request->exchange;
	TimestampTz now = GetCurrentTimestamp();

	if (exchange->outcome == OUTBOX_DELIVERED)
		work->database->status.delivered++;
	else
		work->database->status.failed++;
	outbox_dispatch_finished(request->item, exchange, now);
	work->moved = true;
	if ((work->noted_at == 0 || work->noted_at > now) && outbox_ledger_pending() > 0)
		work->noted_at = now;
	if (exchange->headers != NULL)
		outbox_message_headers_free(exchange->headers);
	outbox_exchange_free(exchange);
	outbox_chunk_unpin(request->chunk);
	pfree(request);
}

/* An attempt that never got to the network. */
static void
end_unsent(OutboxRequest *request, OutboxOutcome outcome, const char *why)
{
	request->exchange->outcome = outcome;
	request->exchange->retry_after = -1;
	strlcpy(request->exchange->error, why, sizeof(request->exchange->error));
	end_request(request);
}

static void
fill_message(OutboxMessage *message, const OutboxLoggedEvent *logged)
{
	const int64 to_unix = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	memcpy(message->id, logged->id_text, OUTBOX_ID_TEXT);
	message->source = outbox_source[0] != '\0' ? outbox_source : source;
	message->type = logged->event.type;
	message->key = logged->event.key;
	message->created_at = logged->event.created_at + to_unix;
	message->content_type = logged->event.content_type;
	message->traceparent = logged->event.traceparent;
	message->headers = logged->headers;
	message->n_headers = logged->n_headers;
	message->body = logged->event.body;
	message->size = logged->event.body_size;
}

static void
send_item(OutboxItem *item)
{
	OutboxRequest *request = MemoryContextAllocZero(TopMemoryContext, sizeof(OutboxRequest));
	OutboxExchange *exchange = outbox_exchange_create();
	OutboxMessage message = {0};
	uint64		span = pg_prng_uint64(&pg_global_prng_state);
	const char *error = NULL;

	if (exchange == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	request->item = item;
	request->exchange = exchange;
	request->chunk = outbox_chunk_pin(item->chunk);
	exchange->endpoint = &item->subscription->endpoint;
	exchange->owner = request;
	if (item->logged->event.unreadable)
	{
		end_unsent(request, OUTBOX_INTERNAL, "the event cannot be read");
		return;
	}
	fill_message(&message, item->logged);
	exchange->body = message.body;
	exchange->size = message.size;
	exchange->headers = outbox_message_headers(&message, item->subscription->signers, item->subscription->n_signers,
											   (int64) time(NULL), (unsigned char *) &span, &error);
	if (exchange->headers == NULL)
		end_unsent(request, OUTBOX_BAD_REQUEST, error);
	else
		outbox_http_start(http, exchange);
}

/* Network events, outcomes, and new requests in the places that became free. True: nothing happened. */
bool
outbox_sender_step(TimestampTz now)
{
	OutboxExchange *exchange;
	OutboxItem *item;
	int			started = 0;
	int			ended = 0;

	outbox_http_work(http, NETWORK_BUDGET_US);
	while ((exchange = outbox_http_finished(http)) != NULL)
	{
		end_request(exchange->owner);
		ended++;
	}
	outbox_item_due(now);
	while (started < SEND_AT_ONCE && !outbox_recorder_overdue() && (item = outbox_dispatch_next(outbox_max_in_flight, now)) != NULL)
	{
		send_item(item);
		started++;
	}
	return started == 0 && ended == 0;
}

void
outbox_sender_start(void)
{
	OutboxHttpOptions options = {.max_connections = outbox_max_in_flight, .user_agent = "outbox/" OUTBOX_VERSION};

	StartTransactionCommand();
	source = make_source();
	CommitTransactionCommand();
	http = outbox_http_create(&options);
	if (http == NULL)
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
	return outbox_lane_waits() && outbox_dispatch_in_flight() < outbox_max_in_flight && !outbox_recorder_overdue();
}
