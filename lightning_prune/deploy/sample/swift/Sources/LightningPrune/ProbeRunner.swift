import Dispatch
import ExecuTorch
import Foundation
import LightningPruneLogic

/// Times what lightning_prune's export_probe wrote. It takes minutes: not for the main thread.
public enum ProbeRunner {
  /// Runs the plan in a folder of the device.
  ///
  /// ExecuTorch's Swift interface has no setting for threads: the runtime takes as many as it chooses, whatever the plan
  /// says, and the clock is the wall's.
  ///
  /// - Throws: `ModelError` where the plan or a file is not what was exported.
  public static func run(_ folder: URL, device: String, progress: (Int, Int) -> Void = { _, _ in }) throws -> ProbeResults {
    guard let bytes = try? Data(contentsOf: folder.appendingPathComponent("plan.json")) else {
      throw ModelError("\(folder.path) has no plan.json: copy the folder of export_probe there")
    }
    let plan = try ProbePlan(bytes)
    for name in plan.order {
      let file = folder.appendingPathComponent(name)
      let size = (try? file.resourceValues(forKeys: [.fileSizeKey]).fileSize) ?? 0
      try ProgramRunner.check(FileEntry(name, plan.files[name] ?? "", size), file)
    }
    let clock = { DispatchTime.now().uptimeNanoseconds }
    return try ProbeRun(plan, tick: ProbeRun.tick(clock), clock: clock).results(
      device: device, threads: 0, clockName: "wall", progress: { progress($0, plan.turns) }
    ) { name in
      Loaded(folder.appendingPathComponent(name))
    }
  }

  private final class Loaded: ProbeFile {
    private var module: Module?
    private var inputs: [String: [ValueConvertible]] = [:]

    init(_ file: URL) {
      module = Module(filePath: file.path, dataFilePaths: [], loadMode: .mmap)
    }

    func run(_ program: ProbeProgram) throws {
      guard let module else { throw ModelError("\(program.file) is closed") }
      do {
        if inputs[program.name] == nil {
          try module.load(program.method)
          inputs[program.name] = try program.inputs.map { try ProgramRunner.value($0, Loaded.drawn($0), $0.shape) }
        }
        _ = try module.execute(program.method, inputs[program.name] ?? [])
      } catch let error as ModelError {
        throw error
      } catch {
        throw ModelError("\(program.name) cannot be run: \(error.localizedDescription)")
      }
    }

    func close() {
      inputs = [:]
      module = nil
    }

    /// Floats at random; whole numbers are zeros. The layout of random numbers does not matter.
    private static func drawn(_ spec: TensorSpec) -> [Float] {
      let count = spec.shape.reduce(1, *)
      return (0..<count).map { _ in spec.dtype == "float32" ? Float.random(in: -1...1) : 0 }
    }
  }
}
