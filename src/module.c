/*
 * What happens when the library is loaded: in the postmaster, at preload, and nowhere else.
 *
 * Shared memory, the commit hook and the launcher can only be set up there, and every backend inherits them by fork.  Loaded later, the library would
 * be deaf and mute, so it refuses; CREATE EXTENSION then says why.
 */
#include "postgres.h"

#include "bell.h"
#include "call.h"
#include "capture_arguments.h"
#include "copies.h"
#include "fmgr.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pull.h"
#include "settings.h"
#include "storage/ipc.h"
#include "yield.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type next_shmem_request = NULL;
static shmem_startup_hook_type next_shmem_startup = NULL;

static void
shmem_request(void)
{
	if (next_shmem_request)
		next_shmem_request();
	outbox_bell_request();
	outbox_call_request();
}

static void
shmem_startup(void)
{
	if (next_shmem_startup)
		next_shmem_startup();
	outbox_bell_startup();
	outbox_call_startup();
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("outbox must be loaded via \"shared_preload_libraries\""),
				errhint("Add outbox to shared_preload_libraries and restart the server."));

	outbox_settings_define();

	next_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	next_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
	outbox_bell_install();
	outbox_pull_install();
	outbox_yield_install();
	outbox_capture_arguments_install();

	/* the servers that pg_upgrade starts deliver nothing */
	if (IsBinaryUpgrade)
	{
		outbox_copies_refuse_upgrade();
		return;
	}
	outbox_copies_look();
	outbox_launcher_register();
}
