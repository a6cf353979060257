-- Run once by the image of PostgreSQL, as its superuser, on an empty volume: the two roles of docs/architecture.md.
-- Migrations run as the owner. The site owns nothing: `manage.py migrate` gives it what it may.
\getenv owner_password DATABASE_OWNER_PASSWORD
\getenv site_password DATABASE_PASSWORD
CREATE ROLE mcpsite_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE mcpsite_site LOGIN PASSWORD :'site_password';
ALTER DATABASE :"DBNAME" OWNER TO mcpsite_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO mcpsite_owner, mcpsite_site;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
