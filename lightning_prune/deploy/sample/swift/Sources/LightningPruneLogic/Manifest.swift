import Foundation

/// A file that the manifest describes: the program or one of its weight files.
public struct FileEntry: Equatable, Sendable {
  public let name: String
  public let sha256: String
  public let sizeBytes: Int
}

/// One input or output: a size that may vary has a range in `dynamic`.
public struct TensorSpec: Equatable, Sendable, CustomStringConvertible {
  public let name: String
  public let shape: [Int]
  public let dtype: String
  public let dynamic: [Int: ClosedRange<Int>]

  public init(name: String, shape: [Int], dtype: String, dynamic: [Int: ClosedRange<Int>] = [:]) {
    self.name = name
    self.shape = shape
    self.dtype = dtype
    self.dynamic = dynamic
  }

  public var description: String { "\(name) \(shape) \(dtype)" }

  /// Throws where `count` values in the shape `given` are not what it takes.
  public func check(_ count: Int, _ given: [Int]) throws {
    let fits = given.count == shape.count && given.indices.allSatisfy { dimension in
      dynamic[dimension]?.contains(given[dimension]) ?? (given[dimension] == shape[dimension])
    }
    guard fits, count == given.reduce(1, *) else {
      throw ModelError("input \(self): got \(count) values for shape \(given)")
    }
  }
}

/// An output that is an input of the next call; it holds `first` throughout at the first one.
public struct Feed: Equatable, Sendable {
  public let input: String
  public let output: String
  public let first: Float

  public init(input: String, output: String, first: Float) {
    self.input = input
    self.output = output
    self.first = first
  }
}

/// A buffer that the program keeps from call to call, and the methods that write it.
public struct StateEntry: Equatable, Sendable {
  public let name: String
  public let methods: [String]
}

public struct MethodSpec: Equatable, Sendable {
  public let inputs: [TensorSpec]
  public let outputs: [TensorSpec]
  public let feeds: [Feed]

  public init(inputs: [TensorSpec], outputs: [TensorSpec], feeds: [Feed] = []) {
    self.inputs = inputs
    self.outputs = outputs
    self.feeds = feeds
  }
}

/// What stands beside a .pte: which bytes it has, and what its methods take and give.
public struct Manifest: Equatable, Sendable {
  public static let format = 1

  public let program: FileEntry
  public let data: [FileEntry]
  public let methods: [String: MethodSpec]
  public let labels: [String]
  public let backend: String
  public let model: String
  public let picture: PictureSpec
  public let state: [StateEntry]

  /// Reads the bytes of a model.json.
  ///
  /// - Throws: `ModelError` where it is malformed, newer, or was changed after it was written.
  public init(_ bytes: Data) throws {
    let format = try Manifest.decode(FormatKey.self, bytes).format
    guard format == Manifest.format else {
      throw ModelError("the manifest is of format \(format), and this app reads \(Manifest.format): update the app")
    }
    let file = try Manifest.decode(ManifestFile.self, bytes)
    try Manifest.checkDigest(bytes, file.digest)
    program = try FileEntry(file.program, file.sha256, file.size_bytes)
    data = try file.data.map { try FileEntry($0.file, $0.sha256, $0.size_bytes) }
    methods = try file.methods.mapValues(MethodSpec.init)
    state = (file.state ?? []).map { StateEntry(name: $0.name, methods: $0.methods) }
    labels = file.labels ?? []
    backend = file.backend.name
    model = file.model.class ?? "model"
    picture = try file.picture.map(PictureSpec.init) ?? .plain
  }

  /// The method of this name.
  public func method(_ name: String) throws -> MethodSpec {
    guard let method = methods[name] else {
      throw ModelError("the program has no method \(name), only \(methods.keys.sorted().joined(separator: ", "))")
    }
    return method
  }

  private static func decode<T: Decodable>(_ type: T.Type, _ bytes: Data) throws -> T {
    do {
      return try JSONDecoder().decode(type, from: bytes)
    } catch {
      throw ModelError("no manifest of lightning_prune, or an incomplete one: \(error)")
    }
  }

  private static func checkDigest(_ bytes: Data, _ digest: String) throws {
    guard isHash(digest), let place = bytes.range(of: Data(digest.utf8)) else {
      throw ModelError("the manifest holds no digest: copy it again")
    }
    var zeroed = bytes
    zeroed.replaceSubrange(place, with: Data(repeating: UInt8(ascii: "0"), count: place.count))
    var hash = Sha256()
    hash.update(zeroed)
    guard hash.hexadecimal() == digest else {
      throw ModelError("the manifest was changed after it was written: copy it again")
    }
  }

  static func isHash(_ text: String) -> Bool {
    text.utf8.count == 64 && text.utf8.allSatisfy { (48...57).contains($0) || (97...102).contains($0) }
  }
}

extension FileEntry {
  public init(_ name: String, _ sha256: String, _ size: Int) throws {
    guard Manifest.isHash(sha256), size >= 0 else {
      throw ModelError("the manifest is incomplete: sha256 \"\(sha256)\", \(size) bytes of \(name)")
    }
    self.init(name: name, sha256: sha256, sizeBytes: size)
  }

  /// Reads what `next` gives, until it gives nothing, and checks that it is this file.
  public func check(_ next: () throws -> Data?) throws {
    var hash = Sha256()
    var size = 0
    while let piece = try next(), !piece.isEmpty {
      hash.update(piece)
      size += piece.count
    }
    guard size == sizeBytes, hash.hexadecimal() == sha256 else {
      throw ModelError(
        "\(name) is not the file that the manifest describes (\(size) bytes, \(sizeBytes) expected, or another"
          + " sha256): copy both files again")
    }
  }
}

extension TensorSpec {
  fileprivate init(_ file: SpecFile) throws {
    var count = 1
    for size in file.shape {
      let (product, overflow) = count.multipliedReportingOverflow(by: size)
      guard size >= 0, !overflow, product <= Int(Int32.max) else { throw ModelError("shape \(file.shape) of \(file.name)") }
      count = product
    }
    var dynamic: [Int: ClosedRange<Int>] = [:]
    for (key, limits) in file.dynamic ?? [:] {
      guard let dimension = Int(key), file.shape.indices.contains(dimension), limits.count == 2, limits[0] >= 0,
        limits[0] <= limits[1]
      else { throw ModelError("dynamic dimension \(key): \(limits) of \(file.name)") }
      dynamic[dimension] = limits[0]...limits[1]
    }
    self.init(name: file.name, shape: file.shape, dtype: file.dtype, dynamic: dynamic)
  }
}

extension MethodSpec {
  fileprivate init(_ file: MethodFile) throws {
    let (inputs, outputs) = (try file.inputs.map(TensorSpec.init), try file.outputs.map(TensorSpec.init))
    for feed in file.feeds ?? [] {
      let (takes, gives) = (inputs.filter { $0.name == feed.input }, outputs.filter { $0.name == feed.output })
      guard takes.count == 1, gives.count == 1, takes[0].shape == gives[0].shape, takes[0].dtype == gives[0].dtype else {
        throw ModelError("the manifest feeds \(feed.output) into \(feed.input), which cannot be")
      }
    }
    let feeds = (file.feeds ?? []).map { Feed(input: $0.input, output: $0.output, first: Float($0.first)) }
    self.init(inputs: inputs, outputs: outputs, feeds: feeds)
  }
}

extension PictureSpec {
  fileprivate init(_ file: PictureFile) throws {
    let fit: Fit
    switch file.fit {
    case "crop":
      guard file.resize ?? 1 > 0 else { throw ModelError("pictures resized to \(file.resize ?? 0)") }
      fit = .crop(resize: file.resize)
    case "stretch":
      fit = .stretch
    case "pad":
      guard let fill = file.fill, (0...255).contains(fill) else { throw ModelError("pictures without a border's value") }
      fit = .pad(fill: fill)
    default:
      throw ModelError("the manifest fits pictures by \"\(file.fit)\", which this app does not know")
    }
    try self.init(fit, mean: file.mean ?? [], std: file.std ?? [])
  }
}

// The keys of the file, as they are written there.
private struct FormatKey: Decodable {
  let format: Int
}

private struct ManifestFile: Decodable {
  let digest: String
  let program: String
  let sha256: String
  let size_bytes: Int
  let data: [DataFile]
  let methods: [String: MethodFile]
  let labels: [String]?
  let backend: BackendFile
  let model: ModelFile
  let picture: PictureFile?
  let state: [StateFile]?
}

private struct StateFile: Decodable {
  let name: String
  let methods: [String]
}

private struct FeedFile: Decodable {
  let input: String
  let output: String
  let first: Double
}

private struct PictureFile: Decodable {
  let fit: String
  let resize: Int?
  let fill: Int?
  let mean: [Double]?
  let std: [Double]?
}

private struct DataFile: Decodable {
  let file: String
  let sha256: String
  let size_bytes: Int
}

private struct MethodFile: Decodable {
  let inputs: [SpecFile]
  let outputs: [SpecFile]
  let feeds: [FeedFile]?
}

private struct SpecFile: Decodable {
  let name: String
  let shape: [Int]
  let dtype: String
  let dynamic: [String: [Int]]?
}

private struct BackendFile: Decodable {
  let name: String
}

private struct ModelFile: Decodable {
  let `class`: String?
}
