/**
 * The public contract of kvorum: service TransactionalKV on the client port.
 *
 * Field ids from 20 up are appended by kvorum: always optional, one id means the same everywhere. Clients that do not
 * know them skip them. Rules of evolution: never renumber, retype, rename, make required or add `throws`; needs are met
 * by new optional ids from 30 up or by new methods. Value sets are strings (see the guarantees page).
 *
 * On every reply `error` and `error_code` are both absent on success and on a plain "not found".
 */

namespace py kvorum_idl

// --- payload structs -----------------------------------------------------------------------------------------------

struct KeyValue {
  1: required binary key,
  2: required binary value,
}

/** One step of a transaction. `type`: set, delete, SET_VERSIONSTAMPED_KEY, SET_VERSIONSTAMPED_VALUE. */
struct Operation {
  1: required string type,
  2: required binary key,
  3: optional binary value,
  4: optional string column_family,
}

/** Keys with begin_key <= key < end_key in one family. */
struct ConflictRange {
  1: required binary begin_key,
  2: required binary end_key,
  3: optional string column_family,
}

/** One configured member as the answering node sees it; times in Unix seconds. */
struct NodeStatus {
  1: required i32 node_id,
  2: required string endpoint,
  3: required string status,
  4: required bool is_leader,
  5: required i64 last_seen_timestamp,
  6: required i64 term,
  7: optional i64 uptime_seconds,
}

struct ClusterHealth {
  1: required list<NodeStatus> nodes,
  2: required i32 healthy_nodes_count,
  3: required i32 total_nodes_count,
  4: optional NodeStatus leader,
  5: required string cluster_status,
  6: required i64 current_term,
}

struct DatabaseStats {
  1: required i64 total_keys,
  2: required i64 total_size_bytes,
  3: required i64 write_operations_count,
  4: required i64 read_operations_count,
  5: required double average_response_time_ms,
  6: required i64 active_transactions,
  7: required i64 committed_transactions,
  8: required i64 aborted_transactions,
  9: optional i64 cache_hit_rate_percent,
  10: optional i64 compaction_pending_bytes,
}

/** A member of the configuration in force; `last_contact_ms` is an age and absent if there never was contact. */
struct MemberInfo {
  1: required i32 node_id,
  2: required string kv_endpoint,
  3: optional string peer_endpoint,
  4: required bool voter = true,
  5: optional i64 last_contact_ms,
}

// --- versions ------------------------------------------------------------------------------------------------------

struct GetReadVersionRequest {
  20: optional i64 deadline_ms,
  21: optional string consistency,
}

struct GetReadVersionResponse {
  1: required i64 read_version,
  2: required bool success,
  3: optional string error,
  20: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct SetReadVersionRequest {
  1: required i64 version,
  20: optional i64 deadline_ms,
}

struct SetReadVersionResponse {
  1: required bool success,
  2: optional string error,
  20: optional string error_code,
}

struct GetCommittedVersionRequest {
}

struct GetCommittedVersionResponse {
  1: required i64 version,
  2: required bool success,
  3: optional string error,
  20: optional string error_code,
}

// --- single keys ---------------------------------------------------------------------------------------------------

struct GetRequest {
  1: required binary key,
  2: optional string column_family,
  20: optional i64 deadline_ms,
  21: optional string consistency,
}

struct GetResponse {
  1: required binary value,
  2: required bool found,
  3: optional string error,
  20: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct SetRequest {
  1: required binary key,
  2: required binary value,
  3: optional string column_family,
  20: optional i64 deadline_ms,
  22: optional binary client_id,
  23: optional i64 request_id,
}

struct SetResponse {
  1: required bool success,
  2: optional string error,
  3: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct DeleteRequest {
  1: required binary key,
  2: optional string column_family,
  20: optional i64 deadline_ms,
  22: optional binary client_id,
  23: optional i64 request_id,
}

struct DeleteResponse {
  1: required bool success,
  2: optional string error,
  3: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct SnapshotReadRequest {
  1: required binary key,
  2: required i64 read_version,
  3: optional string column_family,
  20: optional i64 deadline_ms,
}

struct SnapshotReadResponse {
  1: required binary value,
  2: required bool found,
  3: optional string error,
  20: optional string error_code,
}

struct SnapshotGetRequest {
  1: required binary key,
  2: required i64 read_version,
  3: optional string column_family,
  20: optional i64 deadline_ms,
}

struct SnapshotGetResponse {
  1: required binary value,
  2: required bool found,
  3: optional string error,
  20: optional string error_code,
}

// --- ranges --------------------------------------------------------------------------------------------------------

struct GetRangeRequest {
  1: optional binary begin_key,
  2: optional binary end_key,
  3: optional i32 begin_offset = 0,
  4: optional bool begin_or_equal = true,
  5: optional i32 end_offset = 0,
  6: optional bool end_or_equal = false,
  7: optional i32 limit = 1000,
  8: optional string column_family,
  20: optional i64 deadline_ms,
  21: optional string consistency,
  24: optional bool reverse = false,
}

struct GetRangeResponse {
  1: required list<KeyValue> key_values,
  2: required bool success,
  3: optional string error,
  4: required bool has_more = false,
  20: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
  23: optional binary next_key,
}

struct SnapshotGetRangeRequest {
  1: optional binary begin_key,
  2: optional binary end_key,
  3: optional i32 begin_offset = 0,
  4: optional bool begin_or_equal = true,
  5: optional i32 end_offset = 0,
  6: optional bool end_or_equal = false,
  7: required i64 read_version,
  8: optional i32 limit = 1000,
  9: optional string column_family,
  20: optional i64 deadline_ms,
  24: optional bool reverse = false,
}

struct SnapshotGetRangeResponse {
  1: required list<KeyValue> key_values,
  2: required bool success,
  3: optional string error,
  4: required bool has_more = false,
  20: optional string error_code,
  23: optional binary next_key,
}

// --- transactions --------------------------------------------------------------------------------------------------

struct AtomicCommitRequest {
  1: required i64 read_version,
  2: required list<Operation> operations,
  3: required list<binary> read_conflict_keys,
  4: optional i64 timeout_seconds = 60,
  20: optional i64 deadline_ms,
  22: optional binary client_id,
  23: optional i64 request_id,
  25: optional list<ConflictRange> read_conflict_ranges,
}

struct AtomicCommitResponse {
  1: required bool success,
  2: optional string error,
  3: optional string error_code,
  4: optional i64 committed_version,
  5: optional list<binary> generated_keys,
  6: optional list<binary> generated_values,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct SetVersionstampedKeyRequest {
  1: required binary key_prefix,
  2: required binary value,
  3: optional string column_family,
  20: optional i64 deadline_ms,
  22: optional binary client_id,
  23: optional i64 request_id,
}

struct SetVersionstampedKeyResponse {
  1: required binary generated_key,
  2: required bool success,
  3: optional string error,
  20: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct SetVersionstampedValueRequest {
  1: required binary key,
  2: required binary value_prefix,
  3: optional string column_family,
  20: optional i64 deadline_ms,
  22: optional binary client_id,
  23: optional i64 request_id,
}

struct SetVersionstampedValueResponse {
  1: required binary generated_value,
  2: required bool success,
  3: optional string error,
  20: optional string error_code,
  21: optional i32 leader_id,
  22: optional string leader_endpoint,
}

struct AddReadConflictRequest {
  1: required binary key,
  2: optional string column_family,
}

struct AddReadConflictResponse {
  1: required bool success,
  2: optional string error,
  20: optional string error_code,
}

struct AddReadConflictRangeRequest {
  1: required binary start_key,
  2: required binary end_key,
  3: optional string column_family,
}

struct AddReadConflictRangeResponse {
  1: required bool success,
  2: optional string error,
  20: optional string error_code,
}

// --- diagnostics and tests -----------------------------------------------------------------------------------------

struct FaultInjectionRequest {
  1: required string fault_type,
  2: optional double probability = 0.0,
  3: optional i32 duration_ms = 0,
  4: optional string target_operation,
}

struct FaultInjectionResponse {
  1: required bool success,
  2: optional string error,
  20: optional string error_code,
}

struct PingRequest {
  1: optional binary message,
  2: optional i64 timestamp,
}

/** `server_timestamp` is microseconds since the Unix epoch. */
struct PingResponse {
  1: required binary message,
  2: required i64 timestamp,
  3: required i64 server_timestamp,
  20: optional string error_code,
}

struct GetClusterHealthRequest {
  1: optional string auth_token,
}

struct GetClusterHealthResponse {
  1: required bool success,
  2: optional ClusterHealth cluster_health,
  3: optional string error,
  20: optional string error_code,
}

struct GetDatabaseStatsRequest {
  1: optional string auth_token,
  2: optional bool include_detailed_stats = false,
}

struct GetDatabaseStatsResponse {
  1: required bool success,
  2: optional DatabaseStats database_stats,
  3: optional string error,
  20: optional string error_code,
}

struct GetNodeInfoRequest {
  1: optional string auth_token,
  2: optional i32 node_id,
}

struct GetNodeInfoResponse {
  1: required bool success,
  2: optional NodeStatus node_info,
  3: optional string error,
  20: optional string error_code,
}

struct GetStatusRequest {
  1: optional string auth_token,
}

struct GetStatusResponse {
  1: required bool success,
  2: optional string error,
  3: optional string error_code,
  4: optional i32 node_id,
  5: optional string role,
  6: optional i64 term,
  7: optional i32 leader_id,
  8: optional string leader_endpoint,
  9: optional i64 commit_index,
  10: optional i64 applied_index,
  11: optional i64 low_watermark,
  12: optional list<MemberInfo> members,
  13: optional string server_version,
  14: optional i64 uptime_seconds,
}

// --- the service ---------------------------------------------------------------------------------------------------

service TransactionalKV {
  GetReadVersionResponse getReadVersion(1: GetReadVersionRequest request),
  SnapshotReadResponse snapshotRead(1: SnapshotReadRequest request),
  AtomicCommitResponse atomicCommit(1: AtomicCommitRequest request),
  GetResponse get(1: GetRequest request),
  SetResponse setKey(1: SetRequest request),
  DeleteResponse deleteKey(1: DeleteRequest request),
  GetRangeResponse getRange(1: GetRangeRequest request),
  SnapshotGetResponse snapshotGet(1: SnapshotGetRequest request),
  SnapshotGetRangeResponse snapshotGetRange(1: SnapshotGetRangeRequest request),
  AddReadConflictResponse addReadConflict(1: AddReadConflictRequest request),
  AddReadConflictRangeResponse addReadConflictRange(1: AddReadConflictRangeRequest request),
  SetReadVersionResponse setReadVersion(1: SetReadVersionRequest request),
  GetCommittedVersionResponse getCommittedVersion(1: GetCommittedVersionRequest request),
  SetVersionstampedKeyResponse setVersionstampedKey(1: SetVersionstampedKeyRequest request),
  SetVersionstampedValueResponse setVersionstampedValue(1: SetVersionstampedValueRequest request),
  FaultInjectionResponse setFaultInjection(1: FaultInjectionRequest request),
  PingResponse ping(1: PingRequest request),
  GetClusterHealthResponse getClusterHealth(1: GetClusterHealthRequest request),
  GetDatabaseStatsResponse getDatabaseStats(1: GetDatabaseStatsRequest request),
  GetNodeInfoResponse getNodeInfo(1: GetNodeInfoRequest request),
  GetStatusResponse getStatus(1: GetStatusRequest request),
}
