/*
 * Quiet copies: a server that was restored from a backup must not deliver its original's events a second time.
 *
 * What tells a copy from a restart is only there when the postmaster begins: recovery.signal (a point-in-time restore) or backup_label (a base
 * backup), but no standby.signal (a standby goes on when it is promoted).  PostgreSQL removes or renames both during recovery, so the
 * finding is kept in a file of our own, fsynced before recovery begins.  After recovery the lister resets outbox.armed in every database,
 * durably, and only then removes the file: whenever the server crashes in between, it starts over.  Nothing is delivered while the file is there.
 *
 * A bare copy of a data directory cannot be told from a restart.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_db_role_setting.h"
#include "copies.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "storage/fd.h"

/* Relative to the data directory, as everything is in a running server. */
#define QUIET_FILE "outbox.quiet"

static bool
exists(const char *path)
{
	struct stat st;

	if (stat(path, &st) == 0)
		return true;
	if (errno != ENOENT)
		ereport(ERROR,
				errcode_for_file_access(),
				errmsg("could not stat file \"%s\": %m", path));
	return false;
}

/* Failing here keeps the server from starting: better than sending what the original sends. */
static void
note_copy(void)
{
	static const char note[] = "This server was restored from a copy. outbox removes this file when it has stopped delivery in every database.\n";
	int			fd = BasicOpenFile(QUIET_FILE, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				errcode_for_file_access(),
				errmsg("could not create file \"%s\": %m", QUIET_FILE));

	/* the file's existence is the message, so a short write does no harm */
	errno = 0;
	if (write(fd, note, sizeof(note) - 1) < 0 || pg_fsync(fd) != 0 || close(fd) != 0)
		ereport(ERROR,
				errcode_for_file_access(),
				errmsg("could not write file \"%s\": %m", QUIET_FILE));
	fsync_fname(".", true);
}

void
outbox_copies_look(void)
{
	if (exists("standby.signal"))
		return;
	if (!exists("recovery.signal") && !exists("backup_label"))
		return;
	if (!exists(QUIET_FILE))
		note_copy();
}

void
outbox_copies_refuse_upgrade(void)
{
	if (exists(QUIET_FILE))
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("outbox: this server was restored from a copy, and delivery is not stopped yet"),
				errdetail("Upgraded, it would deliver what its original delivers."),
				errhint("Start it with outbox.enabled = on, wait until the file \"%s\" is gone, and shut it down.", QUIET_FILE));
}

bool
outbox_copies_quiet(void)
{
	return exists(QUIET_FILE);
}

void
outbox_copies_disarm(List *databases)
{
	VariableSetStmt *reset = makeNode(VariableSetStmt);
	ListCell   *cell;

	reset->kind = VAR_RESET;
	reset->name = "outbox.armed";
	foreach(cell, databases)
		AlterSetting(lfirst_oid(cell), InvalidOid, reset);
}

void
outbox_copies_silenced(int n)
{
	if (durable_unlink(QUIET_FILE, LOG) != 0)
		return;					/* logged; the next lister tries again */

	ereport(LOG,
			errmsg("outbox: this server was restored from a copy; delivery is stopped in %d databases", n),
			errdetail("A copy that went on delivering would repeat what the original delivers."),
			errhint("If this server takes the place of the original, run SELECT outbox.start() in each database that is to deliver."));
}
