-- Run once by the image of PostgreSQL, as its superuser, on an empty volume: the roles of docs/architecture.md.
-- Migrations run as the owner. The others own nothing: `manage.py migrate` gives them what they may.
\getenv owner_password DATABASE_OWNER_PASSWORD
\getenv site_password DATABASE_PASSWORD
\getenv writer_password LEDGER_WRITER_PASSWORD
\getenv sealer_password LEDGER_SEALER_PASSWORD
\getenv reader_password LEDGER_READER_PASSWORD
CREATE ROLE mcpsite_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE mcpsite_site LOGIN PASSWORD :'site_password';
CREATE ROLE mcpsite_writer LOGIN PASSWORD :'writer_password';
CREATE ROLE mcpsite_sealer LOGIN PASSWORD :'sealer_password';
CREATE ROLE mcpsite_reader LOGIN PASSWORD :'reader_password';
ALTER ROLE mcpsite_writer SET synchronous_commit = on;
ALTER ROLE mcpsite_writer SET statement_timeout = '250ms';
ALTER ROLE mcpsite_writer SET lock_timeout = '100ms';
ALTER DATABASE :"DBNAME" OWNER TO mcpsite_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO mcpsite_owner, mcpsite_site, mcpsite_writer, mcpsite_sealer, mcpsite_reader;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
